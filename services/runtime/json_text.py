"""JSON content that every edge can read (docs/protocol.md, "Content"). Pure.

Content stays the bytes it came in. It is decoded once, to see that it is one JSON value (RFC 8259) in UTF-8
whose numbers a float64 holds, without halves of surrogate pairs and not nested too deeply: the decoder of a
stock edge breaks its link over some of these, or puts other characters in their place.
"""

import enum
import math
import re

import msgspec

# What any decoder on the way takes; it must not depend on how deep the stack is where it is asked.
MOST_DEPTH = 500
# The least run of digits that no float64 holds.
_MOST_DIGITS = 309
_STRIDE = 100

# Up to here it is cheaper to decode a text than to look whether that is needed.
_SMALL_BYTES = 16 * 1024

_decode = msgspec.json.Decoder().decode
_skim = msgspec.json.Decoder(msgspec.Raw).decode  # looks at neither numbers nor UTF-8
# A long run of digits shows in a sample of every hundredth byte.
_sampled_run = re.compile(rb"[0-9]{%d}" % (_MOST_DIGITS // _STRIDE)).search
_LONG_RUN = b"0" * _MOST_DIGITS  # of `_DIGITS`
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+'
_tokens = re.compile(_STRING + rb"|-?[0-9][0-9.eE+-]*+|-?[A-Za-z]++", re.DOTALL).finditer
_strings = re.compile(_STRING, re.DOTALL).sub
_surrogates = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
).finditer
_some_run = re.compile(rb"[0-9]{2}").search
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_OPENING = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_MOST_SHOWN = 32


class JsonFault(enum.Enum):
    """What is wrong with a text; the value is a metric label."""

    ENCODING = "invalid_utf8"
    SYNTAX = "invalid_json"
    DEPTH = "nested_too_deep"
    NUMBER = "number_out_of_range"
    SURROGATE = "half_surrogate_pair"


class NotJson(ValueError):
    """A text that is not to be carried. The sentence says what is wrong, and where."""

    def __init__(self, fault: JsonFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


def check_json(text: bytes) -> object:
    """Whether a text may be carried; its value, or for a large one `Raw`, since that was only skimmed over.
    Raises NotJson."""
    sample = text[::_STRIDE]
    if _sampled_run(sample) and _LONG_RUN in text.translate(_DIGITS):
        # A decoder would make integers of any size of it; in a string it is harmless.
        fault = find_fault(text)
        if fault is not None and fault.fault is JsonFault.NUMBER:
            raise fault
    try:
        if len(text) <= _SMALL_BYTES or _some_run(sample) or b"e000" in text.translate(_DIGITS, b"+"):
            value: object = _decode(text)
        else:  # no exponent of three digits, no two of 200 digits: no number is too large
            if not text.isascii():
                text.decode()
            value = _skim(text)
    except UnicodeDecodeError:
        raise _not_utf8(text) from None
    except msgspec.DecodeError as error:
        raise find_fault(text) or NotJson(JsonFault.SYNTAX, str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    if len(text) > 2 * MOST_DEPTH and text.count(b"[") + text.count(b"{") > MOST_DEPTH and _is_deep(text):
        raise _too_deep()
    return value


def find_fault(text: bytes) -> NotJson | None:
    """The first fault of a text that decoders tell of badly, or not at all; None if there is none."""
    for token in _tokens(text):
        shown = token[0]
        first = shown[:1]
        if first == b'"':
            if b"\\u" in shown:
                for escape in _surrogates(shown):
                    if escape[1]:
                        at = token.start() + escape.start()
                        half = escape[1].decode()
                        return NotJson(
                            JsonFault.SURROGATE,
                            f"{half} at byte {at} is half a surrogate pair; a character beyond U+FFFF takes "
                            "two escapes, as \\ud83d\\ude00, or its UTF-8 bytes",
                        )
        elif first.isdigit() or shown[1:2].isdigit():
            if not _holds(shown):
                cut = shown[:_MOST_SHOWN].decode() + ("..." if len(shown) > _MOST_SHOWN else "")
                return NotJson(
                    JsonFault.NUMBER,
                    f"the number {cut} at byte {token.start()} is beyond a float64; send it as a string",
                )
        elif shown.lstrip(b"-").lower() in (b"nan", b"inf", b"infinity"):
            return NotJson(
                JsonFault.SYNTAX,
                f"{shown.decode()} at byte {token.start()} is no JSON value; send null or a string",
            )
    return None


def _holds(number: bytes) -> bool:
    """Whether a float64 comes near a number; text that is no number is for the decoder to tell of."""
    try:
        return math.isfinite(float(number))
    except ValueError:
        return True


def _is_deep(text: bytes) -> bool:
    """Whether more than MOST_DEPTH arrays and objects of well-formed JSON stand in one another."""
    brackets = _strings(b"", text).translate(_OPENING, _NOT_BRACKETS)
    for _ in range(MOST_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _too_deep() -> NotJson:
    return NotJson(JsonFault.DEPTH, f"nested deeper than {MOST_DEPTH} arrays and objects")


def _not_utf8(text: bytes) -> NotJson:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return NotJson(JsonFault.ENCODING, f"byte {error.start} is not valid UTF-8: {error.reason}")
    return NotJson(JsonFault.ENCODING, "not valid UTF-8")

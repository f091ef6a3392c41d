"""What may go to the hub: checked before it is durable or sent; the hub ends a link over the rest. Pure.

The hub refuses what other JSON decoders refuse or change (docs/protocol.md, "Content"), and frames above its
limit.
"""

import json
import math

import msgspec

# Less than the hub takes: an upload's number and time stand around its data.
MAX_DEPTH = 400

_decode = msgspec.json.Decoder().decode


class ContentRefused(ValueError):
    """This cannot be sent; the sentence says why, and nothing of it was kept."""


def check_content(content: bytes) -> None:
    """Raises ContentRefused unless it is one JSON value that every decoder reads."""
    if not content.strip():
        raise ContentRefused("there is no content; `null` says nothing")
    try:
        text = content.decode()
        json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_constant)
        _decode(content)
    except UnicodeDecodeError as error:
        raise ContentRefused(f"byte {error.start} is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise ContentRefused(f"not one JSON value: {error}") from None
    except msgspec.DecodeError:
        # What the stricter of the two decoders has against it.
        raise ContentRefused(
            "it holds half a surrogate pair, such as \\ud83d alone; characters beyond U+FFFF take two escapes"
        ) from None
    except RecursionError:
        raise ContentRefused(f"nested deeper than {MAX_DEPTH} arrays and objects") from None
    if content.count(b"[") + content.count(b"{") > MAX_DEPTH and _depth(json.loads(text)) > MAX_DEPTH:
        raise ContentRefused(f"nested deeper than {MAX_DEPTH} arrays and objects")


def check_resource(resource: str) -> None:
    """Raises ContentRefused unless it can stand in a message."""
    if not resource or not resource.isprintable():
        raise ContentRefused(f"resource {resource[:64]!r} should be a path of printable characters")


def check_size(frame: bytes, max_bytes: int) -> None:
    """Raises ContentRefused if the hub takes no frame of that size."""
    if len(frame) > max_bytes:
        raise ContentRefused(f"a message of {len(frame)} bytes; the hub takes at most {max_bytes}")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        shown = text[:32] + ("..." if len(text) > 32 else "")
        raise ContentRefused(f"the number {shown} is beyond a float64; send it as a string")
    return value


def _constant(text: str) -> float:
    raise ContentRefused(f"{text} is no JSON value; send null or a string")


def _depth(value: object) -> int:
    """How many arrays and objects stand in one another."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth

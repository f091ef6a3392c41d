"""Contents of messages, held against another decoder."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fuzz.frames import frame_texts, recorded_frames
from fuzz.mutations import mutated
from fuzz.target import Check
from services.runtime.json_text import MOST_DEPTH, JsonFault, NotJson, check_json

PADDING = b" " * 20_000
"""Long texts are looked at in another way."""
_NUMBERS = (
    "1e400",
    "-1e308",
    "1E+309",
    "9" * 400,
    "0." + "9" * 400,
    "1e-400",
    "0e999",
    "1.7976931348623159e308",
)
_STRINGS = (r"\ud83d\ude00", r"\ud83d", r"\ude00\ud83d", r"\\ud83d", r"a\u0000b", "9" * 400, "1e400", "é")


def contents() -> SearchStrategy[bytes]:
    """Plausible and odd values, whole and spoiled."""
    atoms = st.sampled_from(_NUMBERS) | st.sampled_from([f'"{text}"' for text in _STRINGS])
    values = st.recursive(
        atoms | st.sampled_from(["null", "true", "NaN", "-Infinity", "[]", "{}"]),
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda some: f"[{','.join(some)}]")
            | st.lists(inner, max_size=3).map(
                lambda some: "{" + ",".join(f'"k": {one}' for one in some) + "}"
            )
        ),
        max_leaves=8,
    )
    texts = values.map(str.encode)
    return st.one_of(texts, mutated(texts), frame_texts())


def recorded_contents() -> list[bytes]:
    """What guides a search by coverage: frames of a stock edge, and odd values."""
    return [
        *recorded_frames(),
        *(text.encode() for text in _NUMBERS),
        *(f'"{text}"'.encode() for text in _STRINGS),
    ]


def _fault_of(text: bytes) -> str:
    """What the standard library's decoder finds wrong with a text that is no deeper than MOST_DEPTH."""
    try:
        # A name that stands twice would hide the first value.
        value = json.loads(text.decode(), object_pairs_hook=lambda pairs: [list(pair) for pair in pairs])
    except UnicodeDecodeError:
        return "UTF-8"
    except (ValueError, RecursionError) as error:
        return f"{error}"
    return _value_fault(value)


def _value_fault(value: Any) -> str:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, str):
            if any("\ud800" <= letter <= "\udfff" for letter in one):
                return "half a surrogate pair"
        elif isinstance(one, float) and not math.isfinite(one):
            return "not finite"
        elif isinstance(one, int) and not _is_float(one):
            return "beyond a float64"
    return ""


def _is_float(number: int) -> bool:
    try:
        float(number)
    except OverflowError:
        return False
    return True


def check_content(text: bytes) -> None:
    """What is taken in is what another decoder reads, and what is refused is what it finds a fault with; the
    same with spaces around it."""
    for padded in (text, text + PADDING, PADDING + text):
        try:
            check_json(padded)
        except NotJson as fault:
            assert str(fault), f"{text!r} is refused without a reason"
            deep = fault.fault is JsonFault.DEPTH
            if deep:
                assert text.count(b"[") + text.count(b"{") > MOST_DEPTH, f"{text!r} is not deep"
            assert deep or _fault_of(text), f"{text!r} is refused: {fault}"
        else:
            assert not _fault_of(text), f"{text!r} is taken, and has a fault: {_fault_of(text)}"


@contextmanager
def contents_checked() -> Iterator[Check[bytes]]:
    """The check needs nothing."""
    yield check_content

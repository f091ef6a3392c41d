"""Odd texts, and bytes that were right once."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "edge-1\x00",
    "\x1b[31m",
    "\u202eegde",
    "é",
    "\U0001f600",
    "-",
    "..",
    "../..",
    "EDGE-1",
    "%s%n",
    "' OR 1=1 --",
    "nan",
    "1e9",
    "\uff11",
    "99999999999999999999999",
    "x" * 300,
    "\x00" * 300,
    "y" * 70_000,
)


@st.composite
def mutated(draw: Callable[[SearchStrategy[Any]], Any], whole: SearchStrategy[bytes]) -> bytes:
    """Bytes with some changed, cut off or added."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)

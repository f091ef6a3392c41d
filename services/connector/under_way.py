"""Which frames of a link the edge's host may not have yet. Pure."""

from bisect import bisect_left
from typing import Final

MAX_MARKS: Final = 8
"""Per link. At the bound neighbours become one, the later of both."""


class UnderWay:
    """What had been given to a transport, in bytes, after which number of the acknowledged lane.

    A transport repeats by itself what the network lost, and its bytes arrive in order: while a frame is under
    way, a second one of the same message only comes behind it.
    """

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        self._marks: list[tuple[int, int]] = []

    def mark(self, number: int, given_bytes: int) -> None:
        """The frames up to this number were given to the transport, which then had so many bytes in all."""
        marks = self._marks
        if marks and marks[-1][0] == number:
            return  # what followed was not of that lane
        if len(marks) >= MAX_MARKS:
            del marks[::2]
        marks.append((number, given_bytes))

    def includes(self, number: int, confirmed_bytes: int) -> bool:
        """Whether the host at the other end, which acknowledged so many bytes, lacks some up to this frame's
        mark."""
        place = bisect_left(self._marks, (number,))
        return place < len(self._marks) and self._marks[place][1] > confirmed_bytes

    def clear(self) -> None:
        """Numbers begin anew."""
        self._marks.clear()

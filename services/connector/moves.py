"""Which links look for another dispatcher, and when each of them asks. Pure: time is an argument."""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count


class _Move:
    """One link's search. `turn` is its entry in the heap, 0 if none of them is meant."""

    __slots__ = ("address", "attempts", "due", "turn")

    def __init__(self) -> None:
        self.attempts = 0
        # Where it has asked; empty: nowhere.
        self.address = ""
        self.due = False
        self.turn = 0


class Moves:
    """Every link here is due, waits for a verdict, rests after a failure, or is shelved until the
    dispatchers change. At most `most_asked` links wait for the verdicts of one dispatcher.

    Links are known by their numbers, dispatchers by their addresses.
    """

    def __init__(self, verdict_seconds: float, most_asked: int) -> None:
        self._verdict_seconds = verdict_seconds
        self._most_asked = most_asked
        self._moves: dict[int, _Move] = {}
        self._due: deque[int] = deque()
        self._asked: dict[str, set[int]] = {}
        # When a verdict is late, or a rest over.
        self._heap: list[tuple[float, int, int]] = []
        self._turns = count(1)

    def __len__(self) -> int:
        return len(self._moves)

    def __contains__(self, number: int) -> bool:
        return number in self._moves

    @property
    def is_due(self) -> bool:
        """Whether links could ask at once."""
        return bool(self._due)

    def want(self, number: int) -> None:
        """The link is to move; one that is at it already goes on as it is."""
        if number not in self._moves:
            move = self._moves[number] = _Move()
            self._make_due(number, move)

    def forget(self, number: int) -> None:
        """The link has moved, need not move any more, or is gone."""
        move = self._moves.pop(number, None)
        if move is not None:
            self._answered(number, move)

    def reconsider(self) -> None:
        """The dispatchers are not what they were: links that found none are due."""
        for number, move in self._moves.items():
            if not move.due and not move.address and not move.turn:
                self._make_due(number, move)

    def take_due(self) -> list[int]:
        """The links that are due, in order. Each is to be asked for, put back, shelved or forgotten."""
        due = [number for number in self._due if number in self._moves and self._moves[number].due]
        self._due.clear()
        for number in due:
            self._moves[number].due = False
        return list(dict.fromkeys(due))

    def put_back(self, number: int) -> None:
        """The dispatcher has no room for another question now: due, behind the others."""
        self._make_due(number, self._moves[number])

    def has_room(self, address: str) -> bool:
        """Whether one more link may ask this dispatcher."""
        return len(self._asked.get(address, ())) < self._most_asked

    def asked(self, number: int, address: str, now: float) -> None:
        """The link asked this dispatcher and waits for its verdict."""
        move = self._moves[number]
        move.address = address
        self._asked.setdefault(address, set()).add(number)
        self._at(now + self._verdict_seconds, number, move)

    def rest(self, number: int, now: float, delay: Callable[[int], float]) -> None:
        """Nobody took the link: it stays where it is and asks again after `delay(attempt)` seconds."""
        move = self._moves.get(number)
        if move is None:
            return
        self._answered(number, move)
        move.attempts += 1
        self._at(now + delay(move.attempts), number, move)

    def lost(self, address: str) -> None:
        """The dispatcher's stream is lost: whoever asked there asks elsewhere, at once."""
        for number in sorted(self._asked.get(address, ())):
            move = self._moves[number]
            self._answered(number, move)
            self._make_due(number, move)

    def pass_time(self, now: float) -> list[int]:
        """Makes rested links due; the links whose verdict is late, to be given to `rest`."""
        late: list[int] = []
        while self._heap and self._heap[0][0] <= now:
            _, number, turn = heapq.heappop(self._heap)
            move = self._moves.get(number)
            if move is None or move.turn != turn:
                continue
            if move.address:
                late.append(number)
            else:
                self._make_due(number, move)
        return late

    def next_at(self) -> float | None:
        """When `pass_time` should be called; may be early, never late."""
        return self._heap[0][0] if self._heap else None

    def _make_due(self, number: int, move: _Move) -> None:
        move.due, move.turn = True, 0
        self._due.append(number)

    def _at(self, at: float, number: int, move: _Move) -> None:
        move.turn = next(self._turns)
        heapq.heappush(self._heap, (at, number, move.turn))

    def _answered(self, number: int, move: _Move) -> None:
        if move.address:
            asked = self._asked[move.address]
            asked.discard(number)
            if not asked:
                del self._asked[move.address]
            move.address = ""
        move.turn = 0

"""Which of a hub's addresses to dial next.

Pure: randomness is an argument. The addresses lead to one hub, so each attempt takes another one,
in an order of chance, until all had their turn.
"""

from collections.abc import Sequence


class Servers:
    """The addresses as one node goes through them."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._left: list[str] = []

    def next(self, chance: float) -> str:
        """The address of the next attempt; `chance` in [0, 1) picks it among those that are left."""
        self._left = self._left or list(self._addresses)
        return self._left.pop(int(chance * len(self._left)))

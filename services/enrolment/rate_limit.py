"""How often each address may ask. Pure: the time is an argument.

A bucket of tokens per address, as a single instant: when it will be full again. An address whose bucket is
full needs no entry, so memory follows the addresses that asked lately, up to a bound.
"""

from collections import OrderedDict


class RateLimit:
    """`per_second` on average, `burst` at once. Of more than `most_addresses` that asked lately, the one that
    has not asked for longest is forgotten."""

    def __init__(self, per_second: float, burst: int, most_addresses: int = 65_536) -> None:
        self._interval = 1.0 / per_second
        self._tolerance = self._interval * burst
        self._most = most_addresses
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, address: str, now: float) -> float:
        """0 if the address may ask now; else in how many seconds it may, and nothing is taken."""
        full_at = max(self._full_at.get(address, now), now) + self._interval
        wait = full_at - now - self._tolerance
        # Sums of the interval are not exact.
        if wait > self._interval * 1e-6:
            return wait
        self._full_at[address] = full_at
        self._full_at.move_to_end(address)
        self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        while self._full_at:
            address, full_at = next(iter(self._full_at.items()))
            if full_at > now and len(self._full_at) <= self._most:
                return
            del self._full_at[address]

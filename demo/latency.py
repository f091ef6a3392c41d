"""Latencies as a histogram of fine, equal-ratio buckets: small to send, exact to 1 %. Pure."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping

# Neighbouring buckets differ by 2 %.
_PER_E = 50.0


class Latencies:
    """Counts of durations; a duration below a microsecond counts as one."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, microseconds: float) -> None:
        """Counts one duration."""
        self._counts[int(math.log(microseconds) * _PER_E) if microseconds > 1 else 0] += 1

    def add_counts(self, counts: Mapping[int, int]) -> None:
        """Adds what `take` gave, here or in another process."""
        self._counts.update(counts)

    def counts(self) -> Counter[int]:
        """The counts by bucket so far, which stay."""
        return self._counts.copy()

    def take(self) -> dict[int, int]:
        """The counts by bucket, which start over."""
        counts, self._counts = dict(self._counts), Counter()
        return counts

    def quantiles_ms(self, quantiles: Iterable[float]) -> list[float | None]:
        """Milliseconds at each quantile (0 to 1); None where nothing was counted."""
        total = len(self)
        buckets = sorted(self._counts.items())
        found: list[float | None] = []
        for quantile in quantiles:
            rank, value = quantile * total, None
            for bucket, count in buckets:
                value = math.exp((bucket + 0.5) / _PER_E) / 1000
                rank -= count
                if rank <= 0:
                    break
            found.append(value)
        return found


class RecentLatencies:
    """What was added within the last `seconds`; the caller's clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._parts: deque[tuple[float, Mapping[int, int]]] = deque()

    def add_counts(self, counts: Mapping[int, int], now: float) -> None:
        """Adds counts as `Latencies.take` gives them, and forgets what is too old."""
        if counts:
            self._parts.append((now, counts))
        while self._parts and self._parts[0][0] <= now - self._seconds:
            self._parts.popleft()

    def quantiles_ms(self, quantiles: Iterable[float]) -> list[float | None]:
        """As `Latencies.quantiles_ms`."""
        merged = Latencies()
        for _, counts in self._parts:
            merged.add_counts(counts)
        return merged.quantiles_ms(quantiles)

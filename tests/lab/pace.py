"""How fast this machine is, for bounds that are a matter of its processors."""

import time

# Of the machine of docs/weak-networks.md, in its slower minutes.
_REFERENCE_SECONDS = 0.1
_ROUNDS = 2_000_000


def slowness() -> float:
    """How many times slower than that machine it runs Python; at least 1."""
    return max(1.0, min(_timed() for _ in range(3)) / _REFERENCE_SECONDS)


def _timed() -> float:
    began = time.perf_counter()
    total = 0
    for number in range(_ROUNDS):
        total += number
    return time.perf_counter() - began

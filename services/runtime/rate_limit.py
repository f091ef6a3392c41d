"""How often each network may ask. Pure: the time is an argument.

A bucket of tokens per network, as a single instant: when it will be full again. A network whose bucket is
full needs no entry, so memory follows the networks that asked lately, up to a bound.
"""

from collections import OrderedDict
from ipaddress import IPv6Address, IPv6Network, ip_address

_HOST_BITS = 64


def network_of(address: str) -> str:
    """Whose limits an IP address is under: its own, in IPv6 those of its /64, of which a single host may have
    every address. An IPv4 address in the form of IPv6 is an IPv4 address."""
    found = ip_address(address)
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(IPv6Network((int(found) >> _HOST_BITS << _HOST_BITS, 128 - _HOST_BITS)))


class RateLimit:
    """`per_second` on average, `burst` at once. Of more than `most_networks` that asked lately, the one that
    has not asked for longest is forgotten."""

    def __init__(self, per_second: float, burst: int, most_networks: int = 65_536) -> None:
        self._interval = 1.0 / per_second
        self._tolerance = self._interval * burst
        self._most = most_networks
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, network: str, now: float) -> float:
        """0 if the network may ask now; else in how many seconds it may, and nothing is taken."""
        full_at = max(self._full_at.get(network, now), now) + self._interval
        wait = full_at - now - self._tolerance
        # Sums of the interval are not exact.
        if wait > self._interval * 1e-6:
            return wait
        self._full_at[network] = full_at
        self._full_at.move_to_end(network)
        self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        while self._full_at:
            network, full_at = next(iter(self._full_at.items()))
            if full_at > now and len(self._full_at) <= self._most:
                return
            del self._full_at[network]

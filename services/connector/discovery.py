"""Where dispatchers are: addresses as given, and names that are resolved again and again. Pure."""

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One HOST:PORT of the settings; the host is an address or a DNS name."""

    host: str
    port: int

    @property
    def is_address(self) -> bool:
        """Whether there is nothing to resolve."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


def dial_address(host: str, port: int) -> str:
    """HOST:PORT of an address, as channels want it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def addresses_of(entry: Entry, found: Iterable[str]) -> frozenset[str]:
    """Where to attach, of all addresses that a name has: those of one family, IPv4 if there are any, since a
    dispatcher with both would be attached twice."""
    hosts = set(found)
    version_4 = {host for host in hosts if ":" not in host}
    return frozenset(dial_address(host, entry.port) for host in version_4 or hosts)


def retired(known: Collection[str], found: Collection[str]) -> frozenset[str]:
    """Addresses that no entry stands for any more."""
    return frozenset(known) - frozenset(found)

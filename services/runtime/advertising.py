"""Under which address others reach this process when it was not told."""

import ipaddress
import socket
from collections.abc import Iterable

from services.runtime.settings import split_address


def chosen_address(listen: str, found: Iterable[str], host_name: str) -> str:
    """HOST:PORT to announce for a server at `listen` (its port the one in use). Pure.

    A concrete host stays; for "every address" it is the first of `found` that is no loopback, else the
    machine's name.
    """
    host, port = split_address(listen)
    try:
        is_concrete = not ipaddress.ip_address(host).is_unspecified
    except ValueError:
        is_concrete = True  # a name
    if not is_concrete:
        usable = [one for one in found if not ipaddress.ip_address(one).is_loopback]
        host = usable[0] if usable else host_name
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def advertised_address(listen: str) -> str:
    """`chosen_address` with what this machine knows of itself: the addresses of its name, then the one
    that its default route leaves by."""
    host_name = socket.gethostname()
    found: list[str] = []
    try:
        found += [str(entry[4][0]) for entry in socket.getaddrinfo(host_name, None, socket.AF_INET)]
    except OSError:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of a datagram socket: sends nothing, chooses the route
            found.append(str(probe.getsockname()[0]))
        except OSError:
            pass
    return chosen_address(listen, found, host_name)

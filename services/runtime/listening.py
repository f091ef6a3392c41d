"""Sockets that a service listens on."""

import asyncio
import socket
from collections.abc import Mapping

from services.runtime.errors import StartupError
from services.runtime.settings import split_address


def tcp_listener(listen: str, whom: str, backlog: int, *, send_buffer_bytes: int = 0) -> socket.socket:
    """Listens on HOST:PORT for `whom`. Accepted sockets inherit the size of the send buffer; the operating
    system chooses it if none is given. Raises StartupError."""
    options = {socket.SO_REUSEADDR: 1}
    if send_buffer_bytes:
        options[socket.SO_SNDBUF] = send_buffer_bytes
    try:
        bound = _bound(listen, socket.SOCK_STREAM, options)
        try:
            bound.listen(backlog)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise StartupError(f"cannot listen on {listen} for {whom}: {error.strerror or error}") from error
    return bound


def udp_socket(listen: str, whom: str, *, receive_buffer_bytes: int, send_buffer_bytes: int) -> socket.socket:
    """The one socket for all datagrams of `whom`. Raises StartupError."""
    options = {socket.SO_RCVBUF: receive_buffer_bytes, socket.SO_SNDBUF: send_buffer_bytes}
    try:
        return _bound(listen, socket.SOCK_DGRAM, options)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {listen} (UDP) for {whom}: {error.strerror or error}"
        ) from error


def _bound(listen: str, kind: socket.SocketKind, options: Mapping[int, int]) -> socket.socket:
    host, port = split_address(listen)
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    try:
        bound.setblocking(False)
        for option, value in options.items():
            bound.setsockopt(socket.SOL_SOCKET, option, value)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


async def listening_sockets(listen: str) -> list[socket.socket]:
    """Sockets for HOST:PORT as gRPC itself would have them: all addresses of a name, on one port; an
    unspecified address stands for all of IPv4 and of IPv6. Raises OSError."""
    host, port = split_address(listen)
    if host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6():
        return [socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            sockets.append(socket.create_server((address[0], port), family=family))
            port = sockets[0].getsockname()[1]
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets

"""Sockets that services listen on: `services.runtime.listening`."""

import socket
from collections.abc import Callable

import pytest

from services.runtime.errors import StartupError
from services.runtime.listening import tcp_listener, udp_socket

Make = Callable[[str], socket.socket]


def tcp(listen: str) -> socket.socket:
    return tcp_listener(listen, "edges", 16, send_buffer_bytes=64 * 1024)


def udp(listen: str) -> socket.socket:
    return udp_socket(listen, "edges", receive_buffer_bytes=64 * 1024, send_buffer_bytes=64 * 1024)


@pytest.mark.parametrize(("make", "told"), [(tcp, "for edges: "), (udp, r"\(UDP\) for edges: ")])
def test_an_address_that_cannot_be_had_is_named_and_nothing_stays_open(make: Make, told: str) -> None:
    with make("127.0.0.1:0") as first:
        listen = f"127.0.0.1:{first.getsockname()[1]}"
        with pytest.raises(StartupError, match=f"cannot listen on {listen} {told}Address already in use"):
            make(listen)
        with pytest.raises(StartupError, match=r"cannot listen on no-such-host\.invalid:1"):
            make("no-such-host.invalid:1")


@pytest.mark.parametrize("make", [tcp, udp])
def test_sockets_do_not_block_and_have_the_buffers_asked_for(make: Make) -> None:
    with make("127.0.0.1:0") as made:
        assert not made.getblocking()
        # Linux doubles it for its own bookkeeping.
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 128 * 1024
    with make("[::1]:0") as made:
        assert made.family is socket.AF_INET6

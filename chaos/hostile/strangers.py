"""Connections of somebody who has no certificate and nothing to say."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Sequence

from chaos.hostile.acts import Act

_BEGINNINGS = (
    b"",
    b"\x16\x03\x01\x02\x00\x01",  # a TLS record that says of itself that more of it is to come
    b"GET /ca.crt HTTP/1.1\r\nHost: ",
    b"PRI * HTTP/2.0\r\n\r\n",
)
"""What they say before they fall silent."""
_DIAL_SECONDS = 2.0


LOOPBACK = tuple(f"127.7.0.{number}" for number in range(1, 251))
"""Addresses that nobody else has."""


class Strangers:
    """Each act comes from one of `sources`; an empty one stands for whatever address the kernel takes."""

    def __init__(
        self, doors: Sequence[tuple[str, int]], seed: int, sources: Sequence[str] = LOOPBACK
    ) -> None:
        self._doors = doors
        self._chance = random.Random(seed)
        self._sources = sources

    async def stay_silent(self, act: Act) -> bool:
        """Opens connections to one port and keeps them; whether any was opened."""
        door = self._chance.choice(self._doors)
        source = self._chance.choice(self._sources)
        opened: list[socket.socket] = []
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                for _ in range(act.size):
                    # Refused: that process is down.
                    with contextlib.suppress(ConnectionError):
                        opened.append(await self._open(door, source))
        except TimeoutError:
            pass  # it accepts no more of them, or is frozen
        try:
            if opened:
                await asyncio.sleep(act.hold_seconds)
        finally:
            for one in opened:
                one.close()
        return bool(opened)

    async def _open(self, door: tuple[str, int], source: str) -> socket.socket:
        made = socket.socket()
        try:
            made.setblocking(False)
            if source:
                made.bind((source, 0))
            loop = asyncio.get_running_loop()
            await loop.sock_connect(made, door)
            await loop.sock_sendall(made, self._chance.choice(_BEGINNINGS))
        except BaseException:
            made.close()
            raise
        return made

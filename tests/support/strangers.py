"""Strangers at a port: many TCP connections of one address that say nothing, begin and never end, or come
again whenever they are cut. All addresses of 127.0.0.0/8 are this machine, each a network of its own."""

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

ATTACKER = "127.0.0.66"
# What connects at once: the listener's backlog takes it.
_BATCH = 256


class Strangers:
    """Connections of one address to one port of this machine, held by this process."""

    def __init__(self, port: int, source: str = ATTACKER, data: bytes = b"") -> None:
        self._port = port
        self._source = source
        self._data = data
        self._sockets: list[socket.socket] = []

    @property
    def ports(self) -> int:
        """How many are held, cut ones included."""
        return len(self._sockets)

    async def add(self, count: int) -> None:
        """So many more, each of which sends the data."""
        loop = asyncio.get_running_loop()
        for first in range(0, count, _BATCH):
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_BATCH, count - first)):
                    one = socket.socket()
                    self._sockets.append(one)
                    one.setblocking(False)
                    one.bind((self._source, 0))
                    group.create_task(self._begin(loop, one))

    async def _begin(self, loop: asyncio.AbstractEventLoop, one: socket.socket) -> None:
        try:
            await loop.sock_connect(one, ("127.0.0.1", self._port))
            if self._data:
                await loop.sock_sendall(one, self._data)
        except (ConnectionError, TimeoutError):
            # It was turned away.
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise

    def cut(self) -> int:
        """How many the other side has closed."""
        return sum(map(_is_cut, self._sockets))

    async def keep(self, most_new: int = 16) -> None:
        """Comes again for those that were cut, some hundreds a second, until it is cancelled."""
        while True:
            gone = [one for one in self._sockets if _is_cut(one)][:most_new]
            for one in gone:
                self._sockets.remove(one)
                one.close()
            await self.add(len(gone))
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Goes away."""
        for one in self._sockets:
            one.close()
        self._sockets.clear()


def _is_cut(one: socket.socket) -> bool:
    try:
        return one.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@asynccontextmanager
async def strangers(
    port: int, count: int, source: str = ATTACKER, data: bytes = b"", *, persistent: bool = False
) -> AsyncIterator[Strangers]:
    """So many connections while the block runs; `persistent`: each comes again when it is cut."""
    found = Strangers(port, source, data)
    keeping: asyncio.Task[None] | None = None
    try:
        await found.add(count)
        if persistent:
            keeping = asyncio.create_task(found.keep(), name="strangers")
        yield found
    finally:
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait([keeping])
        found.close()


def reset_at_once(port: int, count: int) -> None:
    """So many connections that are reset before the listener, in this thread, has accepted them."""
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def times(count: int, act: Callable[[int], Awaitable[None]]) -> list[float]:
    """How long each of so many acts takes, one after the other, in seconds, the shortest first."""
    loop = asyncio.get_running_loop()
    found = []
    for number in range(count):
        began = loop.time()
        await act(number)
        found.append(loop.time() - began)
    return sorted(found)


def shown(what: str, idle: list[float], attacked: list[float]) -> str:
    """A line of figures: the middle of both and the 99th of a hundred (of few the worst), in milliseconds."""
    return f"{what}: idle {_figures(idle)}, attacked {_figures(attacked)}"


def _figures(found: list[float]) -> str:
    middle, p99 = found[len(found) // 2], found[-1 - len(found) // 100]
    return f"{middle * 1e3:.0f} ms (p99 {p99 * 1e3:.0f} of {len(found)})"

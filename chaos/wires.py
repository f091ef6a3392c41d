"""The wires between the services: whole, or silent in one direction for a while."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from demo.ports import HOST

MOST_BYTES = 256 * 1024


class Wire:
    """Carries every connection to one server; what can be held is what goes there, or what comes back.
    Whoever starts it closes it."""

    def __init__(self, target: str, *, holds_answers: bool = False) -> None:
        self._holds_answers = holds_answers
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._whole = asyncio.Event()
        self._whole.set()
        self._kept = 0
        self._more_kept = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """HOST:PORT where the server seems to be."""
        assert self._server is not None, "the wire was not started"
        return f"{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        """Takes connections from here on."""
        self._server = await asyncio.start_server(self._carry, HOST, 0)

    async def close(self) -> None:
        """Cuts all connections."""
        if self._server is not None:
            self._server.close()
        for pump in self._pumps:
            pump.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def hold(self) -> None:
        """Keeps what goes in that direction from here on; nothing of it is lost."""
        self._kept = 0
        self._whole.clear()

    async def until_kept(self, connections: int) -> None:
        """Returns when so many connections have something for a held wire to keep."""
        while self._kept < connections:
            self._more_kept.clear()
            await self._more_kept.wait()

    def release(self) -> None:
        """Delivers what was kept."""
        self._whole.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._carry_one(reader, writer)
        finally:
            self._connections.discard(task)

    async def _carry_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()  # nobody is there
            return
        pumps = {
            asyncio.create_task(self._pump(reader, back, held=not self._holds_answers), name="there"),
            asyncio.create_task(self._pump(there, writer, held=self._holds_answers), name="back"),
        }
        self._pumps |= pumps
        # An end of either direction is the end of both.
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)
        self._pumps -= pumps
        for one in (writer, back):
            one.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool) -> None:
        try:
            while data := await reader.read(MOST_BYTES):
                if held and not self._whole.is_set():
                    self._kept += 1
                    self._more_kept.set()
                    await self._whole.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one of the two processes was killed


class DispatcherWires:
    """All that one dispatcher hears, publishers and subscribers aside."""

    def __init__(self, from_connectors: Wire, from_peers: Wire, to_sessions: Sequence[Wire]) -> None:
        self.from_connectors = from_connectors
        self.from_peers = from_peers
        self.to_sessions = to_sessions

    def hold(self) -> None:
        """The dispatcher hears nothing; what it says goes on, and nothing is lost."""
        for wire in (self.from_connectors, self.from_peers, *self.to_sessions):
            wire.hold()

    def release(self) -> None:
        """It hears all of it."""
        for wire in (self.from_connectors, self.from_peers, *self.to_sessions):
            wire.release()


@asynccontextmanager
async def running_wires(
    dispatchers: Sequence[str], sessions: Sequence[str]
) -> AsyncIterator[list[DispatcherWires]]:
    """Wires for dispatchers at these addresses, in their order, each with its own to every replica of
    sessions."""
    async with AsyncExitStack() as stack:

        async def started(wire: Wire) -> Wire:
            await wire.start()
            stack.push_async_callback(wire.close)
            return wire

        yield [
            DispatcherWires(
                await started(Wire(address)),
                await started(Wire(address)),
                [await started(Wire(replica, holds_answers=True)) for replica in sessions],
            )
            for address in dispatchers
        ]

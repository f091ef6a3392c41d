"""Wires that hold one direction."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from chaos.wires import Wire, running_wires
from demo.ports import HOST

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(b"echo " + line)
    writer.close()


@asynccontextmanager
async def serving(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = echo,
) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, HOST, 0)
    async with server:
        yield f"{HOST}:{server.sockets[0].getsockname()[1]}"


async def dialled(address: str) -> Streams:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def said(streams: Streams, text: bytes) -> bytes:
    streams[1].write(text)
    return await asyncio.wait_for(streams[0].readline(), 5)


@asynccontextmanager
async def started(wire: Wire) -> AsyncIterator[Wire]:
    await wire.start()
    try:
        yield wire
    finally:
        await wire.close()


async def test_a_held_wire_keeps_what_goes_there_and_delivers_it_whole() -> None:
    async with serving() as address, started(Wire(address)) as wire:
        one, two = [await dialled(wire.address) for _ in range(2)]
        assert await said(one, b"a\n") == b"echo a\n"
        wire.hold()
        for _, writer in (one, two):
            writer.write(b"b\n")
        await asyncio.wait_for(wire.until_kept(2), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one[0].readline(), 0.05)
        wire.release()
        for reader, writer in (one, two):
            assert await asyncio.wait_for(reader.readline(), 5) == b"echo b\n"
            writer.close()


async def test_the_other_direction_goes_on_while_one_is_held() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        await reader.read()
        writer.close()

    async with serving(greet) as address, started(Wire(address)) as wire:
        wire.hold()
        reader, writer = await dialled(wire.address)
        assert await asyncio.wait_for(reader.readline(), 5) == b"hello\n"
        writer.close()


async def test_a_wire_may_hold_the_answers() -> None:
    async with serving() as address, started(Wire(address, holds_answers=True)) as wire:
        streams = await dialled(wire.address)
        wire.hold()
        streams[1].write(b"a\n")
        await asyncio.wait_for(wire.until_kept(1), 5)
        wire.release()
        assert await asyncio.wait_for(streams[0].readline(), 5) == b"echo a\n"
        streams[1].close()


async def test_an_end_at_either_side_is_the_end_of_both() -> None:
    async with serving() as address, started(Wire(address)) as wire:
        reader, writer = await dialled(wire.address)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_without_a_server_a_connection_ends_at_once() -> None:
    async with serving() as address:
        pass
    async with started(Wire(address)) as wire:
        reader, writer = await dialled(wire.address)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_each_dispatcher_has_wires_of_its_own() -> None:
    async with running_wires(["127.0.0.1:1", "127.0.0.1:2"], ["127.0.0.1:3", "127.0.0.1:4"]) as wires:
        found = [
            wire.address for one in wires for wire in (one.from_connectors, one.from_peers, *one.to_sessions)
        ]
        assert len(set(found)) == 8

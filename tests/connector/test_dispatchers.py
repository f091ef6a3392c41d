"""Finding dispatchers: `services.connector.discovery` and `services.connector.dispatchers`."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cloudhub.v1 import link_pb2
from services.connector.discovery import Entry, addresses_of, dial_address, retired
from services.connector.dispatchers import Dispatchers, resolve_host
from services.connector.metrics import ConnectorMetrics
from tests.connector.conftest import poll
from tests.support.link_dispatcher import LinkDispatcher


def test_addresses_are_taken_as_they_are_and_names_are_resolved() -> None:
    assert Entry("10.0.0.1", 1).is_address
    assert Entry("::1", 1).is_address
    assert not Entry("dispatchers.cloudhub.svc", 1).is_address
    assert dial_address("::1", 5) == "[::1]:5"


def test_a_name_stands_for_all_its_addresses_of_one_family() -> None:
    """A dispatcher with an address of each would be attached twice."""
    name = Entry("dispatchers", 50051)
    assert addresses_of(name, ["10.0.0.2", "10.0.0.1", "10.0.0.2", "fd00::1"]) == {
        "10.0.0.1:50051",
        "10.0.0.2:50051",
    }
    assert addresses_of(name, ["fd00::1"]) == {"[fd00::1]:50051"}
    assert addresses_of(name, []) == frozenset()
    assert retired(["a:1", "b:1"], ["b:1", "c:1"]) == {"a:1"}


async def test_a_host_is_resolved_to_its_addresses() -> None:
    assert "127.0.0.1" in await resolve_host("localhost")
    with pytest.raises(socket.gaierror):
        await resolve_host("name.invalid")


class Names:
    """A name server, and the user of the streams that come of it."""

    def __init__(self) -> None:
        self.hosts: list[str] | OSError = []
        self.asked = 0
        self.attached: list[tuple[str, bool]] = []

    async def resolve(self, host: str) -> list[str]:
        assert host == "dispatchers"
        self.asked += 1
        if isinstance(self.hosts, OSError):
            raise self.hosts
        return self.hosts

    async def until_asked_again(self) -> None:
        """Returns when an answer given from now on has been acted upon."""
        before = self.asked
        await poll(lambda: self.asked >= before + 2)

    def received(self, *_: object) -> None:
        pass

    def attachment_changed(self, stream: object, attached: bool) -> None:
        self.attached.append((stream.address, attached))  # type: ignore[attr-defined]

    def fitness_changed(self, *_: object) -> None:
        pass


@asynccontextmanager
async def running(names: Names, port: int) -> AsyncIterator[Dispatchers]:
    dispatchers = Dispatchers(
        [Entry("dispatchers", port)],
        link_pb2.ConnectorHello(connector_id="c1"),
        names,
        ConnectorMetrics(),
        names.resolve,
        resolve_seconds=0.02,
    )
    task = asyncio.create_task(dispatchers.run())
    try:
        yield dispatchers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_dispatchers_come_and_go_with_their_addresses() -> None:
    """An address that is gone keeps its stream until that is lost, and is not dialled anew."""
    names = Names()
    async with LinkDispatcher().running() as dispatcher, running(names, dispatcher.port) as dispatchers:
        await names.until_asked_again()
        assert dispatchers.choose("edge-1") is None
        names.hosts = ["127.0.0.1"]
        await poll(lambda: dispatchers.attached == 1)
        names.hosts = []
        await names.until_asked_again()
        assert dispatchers.attached == 1
        dispatcher.end_stream()
        await poll(lambda: dispatchers.attached == 0)
        await names.until_asked_again()
        assert dispatcher.streams == 1
        names.hosts = ["127.0.0.1"]
        await poll(lambda: dispatchers.attached == 1)
        assert dispatcher.streams == 2
        assert [attached for _, attached in names.attached] == [True, False, True]


async def test_a_name_server_that_is_away_changes_nothing() -> None:
    names = Names()
    async with LinkDispatcher().running() as dispatcher, running(names, dispatcher.port) as dispatchers:
        names.hosts = ["127.0.0.1"]
        await poll(lambda: dispatchers.attached == 1)
        names.hosts = OSError("no answer")
        await names.until_asked_again()
        dispatcher.end_stream()
        await poll(lambda: dispatcher.streams == 2)
        await poll(lambda: dispatchers.attached == 1)

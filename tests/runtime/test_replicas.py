"""Calls to a service of several replicas, and where they are said to be."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from cloudhub.v1.sessions_pb2 import LocateNodesRequest, LocateNodesResponse
from cloudhub.v1.sessions_pb2_grpc import SessionsServiceServicer, add_SessionsServiceServicer_to_server
from services.dispatcher.sessions_client import SESSIONS_SERVICE, SessionsClient
from services.dispatcher.settings import DispatcherSettings
from services.runtime.errors import Unavailable
from services.runtime.rpc import RpcServer, open_replicas_channel
from services.runtime.settings import load_settings


class Replica(SessionsServiceServicer):
    """One of several sessions services: counts its calls, and may refuse them."""

    def __init__(self) -> None:
        self.calls = 0
        self.store_is_away = False
        self.server = RpcServer("127.0.0.1:0", [SESSIONS_SERVICE])
        add_SessionsServiceServicer_to_server(self, self.server.grpc_server)

    async def LocateNodes(
        self,
        request: LocateNodesRequest,
        context: grpc.aio.ServicerContext[LocateNodesRequest, LocateNodesResponse],
    ) -> LocateNodesResponse:
        self.calls += 1
        if self.store_is_away:
            raise Unavailable("STORE_UNAVAILABLE", "the database is away")
        return LocateNodesResponse()


@asynccontextmanager
async def two_replicas() -> AsyncIterator[tuple[SessionsClient, Replica, Replica]]:
    """A client that has talked to both."""
    first, second = Replica(), Replica()  # type: ignore[abstract]
    async with AsyncExitStack() as stack:
        for replica in (first, second):
            await replica.server.start()
            stack.push_async_callback(replica.server.stop, 0)
        addresses = f"{first.server.address},{second.server.address}"
        channel = await stack.enter_async_context(open_replicas_channel(addresses, SESSIONS_SERVICE))
        client = SessionsClient(channel, "d1", 5.0)
        while not (first.calls and second.calls):
            await client.locate(["edge-1"])
        yield client, first, second


async def test_replicas_take_turns() -> None:
    async with two_replicas() as (client, first, second):
        before = first.calls, second.calls
        for _ in range(10):
            await client.locate(["edge-1"])
        assert (first.calls - before[0], second.calls - before[1]) == (5, 5)


async def test_calls_go_on_through_the_other_replica_when_one_dies() -> None:
    """C35: and none of them fails; a replica that is back has its turn again."""
    async with two_replicas() as (client, first, second):
        await first.server.stop(0)
        before = second.calls
        for _ in range(20):
            await client.locate(["edge-1"])
        assert second.calls - before == 20


async def test_a_call_that_one_replica_cannot_take_is_taken_by_another() -> None:
    async with two_replicas() as (client, first, second):
        first.store_is_away = True
        before = second.calls
        for _ in range(10):
            await client.locate(["edge-1"])
        assert second.calls - before == 10


async def test_without_any_replica_calls_are_unavailable() -> None:
    async with two_replicas() as (client, first, second):
        await first.server.stop(0)
        await second.server.stop(0)
        with pytest.raises(Unavailable, match="sessions does not answer"):
            await client.locate(["edge-1"])


@pytest.mark.parametrize(
    "value", ["sessions:50052", "127.0.0.1:1,127.0.0.2:1", "[::1]:1,[::2]:2", "127.0.0.1:1, 127.0.0.1:2"]
)
def test_replicas_are_one_name_or_a_list_of_addresses(value: str) -> None:
    settings = load_settings(DispatcherSettings, "cloudhub-dispatcher", ["--sessions", value])
    assert settings.sessions == value.replace(" ", "")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("sessions-1:50052,sessions-2:50052", "IP:PORT,IP:PORT,... or one name that stands for all of them"),
        ("127.0.0.1:1,[::1]:1", "should be all IPv4 or all IPv6"),
        ("127.0.0.1:1,", "should be HOST:PORT"),
    ],
)
def test_replicas_that_cannot_be_are_one_sentence(
    value: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(DispatcherSettings, "cloudhub-dispatcher", ["--sessions", value])
    assert told in capsys.readouterr().err

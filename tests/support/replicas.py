"""Several dispatchers in this process over one database, each with a connector of its own.

So a test says which dispatcher gets a node's link: it opens the edge at that one's connector.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from services.connector.app import ConnectorApp
from services.connector.app import running_app as running_connector
from services.connector.settings import ConnectorSettings
from services.dispatcher.app import RunningApp, running_app
from services.dispatcher.outbox.schema import SCHEMA
from services.dispatcher.settings import DispatcherSettings
from services.runtime.rpc import open_channel
from services.runtime.tracing import Tracing
from services.sessions.app import SessionsApp
from services.sessions.app import running_app as running_sessions
from services.sessions.settings import SessionsSettings
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers
from tests.support.hub import Part, StockEdge, Subscriber, acquainted
from tests.support.postgres import Databases
from tests.support.processes import HOST, eventually


@dataclass
class Replica:
    """One dispatcher, its connector, and stubs to it."""

    number: int
    dispatcher: Part[RunningApp]
    connector: Part[ConnectorApp]
    peers: EdgePeers
    cloud: Any = None
    admin: Any = None
    channels: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def app(self) -> RunningApp:
        """The running dispatcher."""
        return self.dispatcher.app

    async def publish(self, request: pb.PublishRequest) -> list[pb.NodeOutcome]:
        """The outcomes of a publish through this dispatcher."""
        return list((await self.cloud.Publish(request, timeout=10)).outcomes)

    async def accept(self, request: pb.PublishRequest) -> None:
        """Publishes what must be accepted."""
        for outcome in await self.publish(request):
            assert outcome.outcome == pb.OUTCOME_ACCEPTED, outcome

    @asynccontextmanager
    async def edge(self, node_id: str = "edge-1") -> AsyncIterator[StockEdge]:
        """A scripted edge whose session this dispatcher has."""
        edge = StockEdge(node_id, await self.peers.open(node_id))
        try:
            yield edge
        finally:
            await edge.connection.close()

    @asynccontextmanager
    async def subscriber(self, *modules: str, max_unacknowledged: int = 0) -> AsyncIterator[Subscriber]:
        """A cloud program at this dispatcher, known to it."""
        call = self.cloud.Subscribe(wait_for_ready=True)
        subscription = pb.Subscription(modules=modules, max_unacknowledged=max_unacknowledged)
        await call.write(pb.SubscribeRequest(subscription=subscription))
        await call.initial_metadata()
        try:
            yield Subscriber(call)
        finally:
            call.cancel()
            await asyncio.wait([asyncio.ensure_future(call.code())])

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric of this dispatcher; 0 if it was never touched."""
        return self.app.registry.get_sample_value(f"cloudhub_dispatcher_{name}", labels) or 0.0

    def serves(self, *modules: str) -> bool:
        """True when nodes here reach subscribers of all these modules, wherever those are."""
        return set(modules) <= set(self.app.upstream.served())


class Replicas:
    """Made by `running_replicas`."""

    def __init__(
        self, folder: Path, database: str, authority: TestAuthority, count: int, changes: dict[str, Any]
    ) -> None:
        self._folder = folder
        self.database = database
        self._authority = authority
        self._changes = changes
        self._ports: dict[str, int] = {}
        self._server = authority.issue("localhost", None, file="server")
        self.sessions: Part[SessionsApp] = Part("sessions", self._make_sessions)
        self.all = [self._replica(number) for number in range(count)]

    def __getitem__(self, number: int) -> Replica:
        return self.all[number]

    def _settings(self, name: str, **values: Any) -> dict[str, Any]:
        return {
            "listen": f"{HOST}:{self._ports.get(name, 0)}",
            "metrics_listen": f"{HOST}:0",
            "name": name,
            "shutdown_seconds": 4.0,
            "grpc_insecure_loopback": True,
        } | values

    def _make_sessions(self) -> AbstractAsyncContextManager[SessionsApp]:
        values = self._settings("sessions", database=f"sqlite:///{self._folder / 'sessions.db'}")
        return running_sessions(SessionsSettings(**values), tracing=Tracing(None, "sessions"))

    def _replica(self, number: int) -> Replica:
        dispatcher = f"dispatcher-{number}"

        def make_dispatcher() -> AbstractAsyncContextManager[RunningApp]:
            values = self._settings(
                dispatcher,
                database=self.database,
                sessions=f"{HOST}:{self._ports['sessions']}",
            )
            return running_app(DispatcherSettings(**(values | self._changes)), Tracing(None, "dispatcher"))

        def make_connector() -> AbstractAsyncContextManager[ConnectorApp]:
            values = self._settings(
                f"connector-{number}",
                listen=f"{HOST}:0",
                quic_listen=f"{HOST}:0",
                grpc_listen=f"{HOST}:0",
                dispatchers=f"{HOST}:{self._ports[dispatcher]}",
                certificate=self._server.certificate,
                private_key=self._server.key,
                client_ca=self._authority.certificate,
                drain_links_per_second=100_000.0,
                close_seconds=1.0,
                retry_after_seconds=1.0,
            )
            return running_connector(ConnectorSettings(**values), tracing=Tracing(None, "connector"))

        return Replica(
            number,
            Part(dispatcher, make_dispatcher),
            Part(f"connector-{number}", make_connector),
            EdgePeers(self._authority, 0),
        )

    async def start(self) -> None:
        """Everything runs, dispatchers know each other, connectors are attached."""
        self._ports["sessions"] = (await self.sessions.start()).port
        for replica in self.all:
            await self.start_replica(replica)
        await self.acquainted()

    async def start_replica(self, replica: Replica) -> None:
        """A dispatcher and its connector come (again)."""
        name = f"dispatcher-{replica.number}"
        self._ports[name] = (await replica.dispatcher.start()).port
        replica.peers.port = (await replica.connector.start()).edge_port
        replica.channels = AsyncExitStack()
        channel = await replica.channels.enter_async_context(open_channel(f"{HOST}:{self._ports[name]}"))
        replica.cloud, replica.admin = DispatcherServiceStub(channel), DispatcherAdminStub(channel)
        await eventually(lambda: replica.connector.app.dispatchers.attached == 1, 15, "attached")

    async def acquainted(self, among: Sequence[Replica] | None = None) -> None:
        """The list that sessions would tell; returns when all relays among them run."""
        await acquainted([one.app for one in (self.all if among is None else among)])

    async def stop_replica(self, replica: Replica, *, told: bool = True) -> None:
        """A dispatcher ends with its connector; with `told` the others hear that its lease is over."""
        await replica.channels.aclose()
        await replica.connector.stop()
        await replica.dispatcher.stop()
        if told:
            await self.acquainted([one for one in self.all if one is not replica])

    async def close(self) -> None:
        """Stops what runs."""
        for replica in self.all:
            await replica.channels.aclose()
            await replica.connector.stop()
        for replica in self.all:
            await replica.dispatcher.stop()
        await self.sessions.stop()


@asynccontextmanager
async def running_replicas(
    folder: Path, databases: Databases, authority: TestAuthority, count: int = 2, **changes: Any
) -> AsyncIterator[Replicas]:
    """A hub with several dispatchers; `changes` are settings of all of them."""
    hub = Replicas(folder, await databases.fresh(SCHEMA), authority, count, changes)
    try:
        await hub.start()
        yield hub
    finally:
        await hub.close()

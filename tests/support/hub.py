"""A whole hub in this process: its services joined by real gRPC, reached over real TLS WebSockets."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar
from unittest import mock

import grpc
from google.protobuf.duration_pb2 import Duration
from prometheus_client import CollectorRegistry
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from cloudhub.v1 import connector_pb2, sessions_pb2
from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.connector_pb2_grpc import ConnectorAdminStub
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from edge.agent import EdgeFleet
from edge.settings import EdgeSettings
from services.connector.app import ConnectorApp
from services.connector.app import running_app as running_connector
from services.connector.settings import ConnectorSettings
from services.dispatcher.app import RunningApp as DispatcherApp
from services.dispatcher.app import running_app as running_dispatcher
from services.dispatcher.settings import DispatcherSettings
from services.runtime.database_source import DatabaseSource
from services.runtime.migrations import Schema
from services.runtime.roles import Role
from services.runtime.rpc import open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, Security
from services.runtime.store import Store, open_store
from services.runtime.tracing import Tracing
from services.sessions.app import SessionsApp
from services.sessions.app import running_app as running_sessions
from services.sessions.settings import SessionsSettings
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers
from tests.support.processes import HOST, eventually

Json = dict[str, Any]
A = TypeVar("A")
START_SECONDS = 15.0
STOP_SECONDS = 15.0
_numbers = count(1)


class Part(Generic[A]):
    """One service of the hub: its app runs in a task of its own, so that it can be stopped and come back."""

    def __init__(self, name: str, make: Callable[[], AbstractAsyncContextManager[A]]) -> None:
        self.name = name
        self._make = make
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._app: A | None = None

    @property
    def app(self) -> A:
        """What the service shows of itself while it runs."""
        assert self._app is not None, f"{self.name} does not run"
        return self._app

    @property
    def runs(self) -> bool:
        """Whether it was started and not stopped."""
        return self._app is not None

    async def start(self) -> A:
        """Returns when the service runs; raises what kept it from starting."""
        started: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._stop.clear()
        self._task = asyncio.create_task(self._run(started), name=f"hub {self.name}")
        self._task.add_done_callback(lambda _: started.cancel())
        async with asyncio.timeout(START_SECONDS):
            await asyncio.wait([started])
        if started.cancelled():
            await self._task
        self._app = started.result()
        return self.app

    async def _run(self, started: asyncio.Future[A]) -> None:
        async with self._make() as app:
            started.set_result(app)
            await self._stop.wait()

    async def stop(self) -> None:
        """A clean stop; raises what the service ended with."""
        if self._task is not None:
            self._stop.set()
            task, self._task, self._app = self._task, None, None
            async with asyncio.timeout(STOP_SECONDS):
                await task


class SharedStores:
    """One open database for all dispatchers of this process, as a server's would be: SQLite itself serves
    one opener only."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}

    async def open(self, source: DatabaseSource | str, schema: Schema) -> Store:
        """Instead of `open_store`; what the dispatcher closes stays open for the others."""
        url = source if isinstance(source, str) else source.read()
        if url not in self._stores:
            self._stores[url] = await open_store(url, schema)
        shared = mock.Mock(wraps=self._stores[url])
        shared.close = mock.AsyncMock()
        shared.is_shared = True
        return shared

    async def close(self) -> None:
        """Closes them for good."""
        for store in self._stores.values():
            await store.close()


class StockEdge:
    """An edge that does nothing by itself: tests read what it gets and say what it answers."""

    def __init__(self, node_id: str, connection: ClientConnection) -> None:
        self.node_id = node_id
        self.connection = connection

    async def next(self, seconds: float = 5.0) -> Json:
        """The next message; the text of the failure says what was waited for."""
        try:
            async with asyncio.timeout(seconds):
                message: Json = json.loads(await self.connection.recv())
                return message
        except TimeoutError:
            raise AssertionError(f"{self.node_id} got nothing within {seconds:g} s") from None

    async def take(self, number: int, seconds: float = 5.0) -> list[Json]:
        """The next messages, unanswered."""
        return [await self.next(seconds) for _ in range(number)]

    async def gets_nothing(self, seconds: float) -> None:
        """Fails if a message comes within the time."""
        try:
            async with asyncio.timeout(seconds):
                raise AssertionError(f"{self.node_id} got {await self.connection.recv()!r}")
        except TimeoutError:
            pass

    async def closed(self, seconds: float = 10.0) -> tuple[int, str]:
        """Waits until the hub closes the link; code and text of the close frame."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self.connection.recv()
        except ConnectionClosed as end:
            return (end.rcvd.code, end.rcvd.reason) if end.rcvd else (1006, "")

    async def answer(self, message: Json, operation: str = "response", content: Any = "OK") -> None:
        """An acknowledgement, or with `error` a negative one."""
        await self.send(
            operation, message["route"].get("resource", ""), content, parent_id=message["header"]["msg_id"]
        )

    async def send(
        self,
        operation: str,
        resource: str = "",
        content: Any = None,
        *,
        group: str = "resource",
        source: str = "edged",
        parent_id: str = "",
        message_id: str = "",
        sync: bool = False,
    ) -> str:
        """Any message; gives back its id."""
        header: Json = {"msg_id": message_id or f"up-{next(_numbers)}", "timestamp": 1795468263601}
        header |= {"parent_msg_id": parent_id} if parent_id else {}
        header |= {"sync": True} if sync else {}
        route = {"source": source, "group": group, "operation": operation, "resource": resource}
        await self.connection.send(json.dumps({"header": header, "route": route, "content": content}))
        return str(header["msg_id"])

    async def keepalive(self) -> None:
        """What a stock edge sends every heartbeat."""
        await self.send("keepalive", "node", "ping", source="websocket")

    def cut(self) -> None:
        """Resets the connection: no close frame."""
        self.connection.transport.abort()


class Subscriber:
    """A cloud program that takes upstream messages of some modules."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._got: list[pb.UpstreamDelivery] = []

    async def next(self, seconds: float = 10.0) -> pb.UpstreamDelivery:
        """The next delivery, unacknowledged."""
        try:
            async with asyncio.timeout(seconds):
                while not self._got:
                    response = await self._call.read()
                    assert response is not grpc.aio.EOF, "the subscription ended"
                    self._got.extend(response.deliveries)
        except TimeoutError:
            raise AssertionError(f"no upstream message within {seconds:g} s") from None
        return self._got.pop(0)

    async def acknowledge(self, *deliveries: pb.UpstreamDelivery) -> None:
        """The subscriber is done with these."""
        ids = [delivery.delivery_id for delivery in deliveries]
        await self._call.write(pb.SubscribeRequest(acknowledged=ids))

    async def take(self, number: int = 1, seconds: float = 10.0) -> list[pb.UpstreamDelivery]:
        """The next deliveries, acknowledged."""
        deliveries = [await self.next(seconds) for _ in range(number)]
        await self.acknowledge(*deliveries)
        return deliveries

    async def until(
        self, wanted: Callable[[pb.UpstreamDelivery], bool], seconds: float = 10.0
    ) -> pb.UpstreamDelivery:
        """The next delivery that is wanted; those before it are acknowledged too."""
        while True:
            (delivery,) = await self.take(1, seconds)
            if wanted(delivery):
                return delivery


def _names(service: str, number: int) -> list[str]:
    """`dispatcher`, `dispatcher-2`, ..."""
    return [service, *(f"{service}-{n}" for n in range(2, number + 1))]


async def acquainted(dispatchers: Sequence[DispatcherApp]) -> None:
    """Tells these dispatchers of each other, as sessions would; returns when all relays among them run."""
    for app in dispatchers:
        app.peers.seen([one.peers.own for one in dispatchers])
    await eventually(
        lambda: all(
            sum(peer.is_attached for peer in app.peers) == len(dispatchers) - 1 for app in dispatchers
        ),
        15,
        "every dispatcher has a relay from every other",
    )


class RunningHub:
    """Made by `running_hub`."""

    def __init__(
        self,
        folder: Path,
        authority: TestAuthority,
        changes: Mapping[str, Mapping[str, Any]],
        dispatchers: int = 1,
        connectors: int = 1,
        shared_outbox: bool = False,
        registries: int = 1,
        databases: Mapping[str, str] | None = None,
        tls: bool = False,
    ) -> None:
        self.folder = folder
        self.security: Security = PLAINTEXT_LOOPBACK
        self._grpc: dict[str, Any] = {"grpc_insecure_loopback": True}
        if tls:
            both = authority.program("tests", Role.PUBLISHER, Role.OPERATOR)
            self.security = authority.security(both)
            own = authority.service()
            self._grpc = {
                "grpc_certificate": own.certificate,
                "grpc_private_key": own.key,
                "grpc_ca": authority.certificate,
            }
        self.databases = databases or {}
        self._shared = SharedStores() if shared_outbox else None
        self.authority = authority
        self._changes = changes
        self._channels = AsyncExitStack()
        self._opened: dict[str, grpc.aio.Channel] = {}
        self._listens: dict[str, str] = {}
        # The stubs' published types are those of blocking channels.
        self.cloud: Any = None
        self.dispatcher_admin: Any = None
        self.sessions_admin: Any = None
        self.connector_admin: Any = None
        self.registries: list[Part[SessionsApp]] = [
            Part(name, partial(self._make_sessions, name)) for name in _names("sessions", registries)
        ]
        self.dispatchers: list[Part[DispatcherApp]] = [
            Part(name, partial(self._make_dispatcher, name)) for name in _names("dispatcher", dispatchers)
        ]
        self.connectors: list[Part[ConnectorApp]] = [
            Part(name, partial(self._make_connector, name)) for name in _names("connector", connectors)
        ]
        # The first of each; edges link to the first connector if nothing else is said.
        self.sessions, self.dispatcher = self.registries[0], self.dispatchers[0]
        self.connector = self.connectors[0]
        self.peers = EdgePeers(authority, 0)

    # Life

    async def __aenter__(self) -> "RunningHub":
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _start(self) -> None:
        # A service that comes back has the address that it had.
        for registry in self.registries:
            self._listens[registry.name] = f"{HOST}:{(await registry.start()).port}"
        if self._shared:
            patch = mock.patch("services.dispatcher.app.open_store", self._shared.open)
            self._channels.enter_context(patch)
            self._channels.push_async_callback(self._shared.close)
        for dispatcher in self.dispatchers:
            self._listens[dispatcher.name] = f"{HOST}:{(await dispatcher.start()).port}"
        for part in self.connectors:
            connector = await part.start()
            self._listens[part.name] = f"{HOST}:{connector.grpc_port}"
            self._listens[f"edges of {part.name}"] = f"{HOST}:{connector.edge_port}"
        self.peers.port = self.connector.app.edge_port
        self.cloud = DispatcherServiceStub(await self.channel("dispatcher"))
        self.dispatcher_admin = DispatcherAdminStub(await self.channel("dispatcher"))
        self.sessions_admin = SessionsAdminStub(await self.channel("sessions"))
        self.connector_admin = ConnectorAdminStub(await self.channel("connector"))
        await self.attached()
        if self.databases:
            await acquainted([part.app for part in self.dispatchers])

    async def close(self) -> None:
        """Stops what runs, connector first."""
        for connector in self.connectors:
            await connector.stop()
        for dispatcher in self.dispatchers:
            await dispatcher.stop()
        for registry in self.registries:
            await registry.stop()
        await self._channels.aclose()

    async def attached(self) -> None:
        """Returns when every connector is attached to every dispatcher and links are served."""
        for connector in self.connectors:
            await eventually(
                lambda app=connector.app: app.dispatchers.attached == len(self.dispatchers),  # type: ignore[misc]
                15,
                "the connectors attached",
            )

    def address(self, service: str) -> str:
        """HOST:PORT of a service's gRPC server."""
        return self._listens[service]

    async def channel(self, service: str) -> grpc.aio.Channel:
        """The channel to a service; closed with the hub."""
        if service not in self._opened:
            channel = open_channel(self.address(service), self.security)
            self._opened[service] = await self._channels.enter_async_context(channel)
        return self._opened[service]

    def _settings(self, service: str, name: str = "", **values: Any) -> dict[str, Any]:
        values = {
            "listen": self._listens.get(name or service, f"{HOST}:0"),
            "metrics_listen": f"{HOST}:0",
            "name": f"{service}-1" if name in ("", service) else name,
            "shutdown_seconds": 4.0,
            **self._grpc,
        } | values
        return values | dict(self._changes.get(service, {}))

    def _make_sessions(self, name: str) -> AbstractAsyncContextManager[SessionsApp]:
        database = self.databases.get("sessions", f"sqlite:///{self.folder / 'sessions.db'}")
        settings = SessionsSettings(**self._settings("sessions", name, database=database))
        return running_sessions(settings)

    def _make_dispatcher(self, name: str) -> AbstractAsyncContextManager[DispatcherApp]:
        file = "dispatcher" if self._shared else name
        values = self._settings(
            "dispatcher",
            name,
            database=self.databases.get("dispatcher", f"sqlite:///{self.folder / file}.db"),
            sessions=",".join(self.address(part.name) for part in self.registries),
            cluster_ca=self.authority.certificate,
        )
        return running_dispatcher(DispatcherSettings(**values), tracing=Tracing(None, "dispatcher"))

    def _make_connector(self, name: str) -> AbstractAsyncContextManager[ConnectorApp]:
        server = self.authority.issue("localhost", None, file="server")
        values = self._settings(
            "connector",
            name,
            listen=self._listens.get(f"edges of {name}", f"{HOST}:0"),
            quic_listen=f"{HOST}:0",
            grpc_listen=self._listens.get(name, f"{HOST}:0"),
            dispatchers=",".join(self.address(part.name) for part in self.dispatchers),
            certificate=server.certificate,
            private_key=server.key,
            client_ca=self.authority.certificate,
            drain_links_per_second=100_000.0,
            close_seconds=1.0,
            retry_after_seconds=1.0,
        )
        return running_connector(ConnectorSettings(**values), tracing=Tracing(None, "connector"))

    # Edges

    async def open_edge(self, node_id: str = "edge-1", *, at: str = "", **options: Any) -> StockEdge:
        """A scripted edge with an admitted link; its owner closes the connection. `at` names another
        connector than the first."""
        port = self._edge_port(at) if at else self.peers.port
        return StockEdge(node_id, await self.peers.open(node_id, port=port, **options))

    def _edge_port(self, connector: str) -> int:
        return int(self._listens[f"edges of {connector}"].rpartition(":")[2])

    @asynccontextmanager
    async def edge(self, node_id: str = "edge-1", **options: Any) -> AsyncIterator[StockEdge]:
        """A scripted edge whose link is closed when the block is left."""
        edge = await self.open_edge(node_id, **options)
        try:
            yield edge
        finally:
            await edge.connection.close()

    @asynccontextmanager
    async def fleet(self, *node_ids: str, **changes: Any) -> AsyncIterator[EdgeFleet]:
        """Edge agents, all connected, that know every connector."""
        certificates = self.authority.certificate.parent
        (certificates / "nodes").mkdir(exist_ok=True)
        for node_id in node_ids:
            self.authority.issue(f"system:node:{node_id}", file=f"nodes/{node_id}")
        values: dict[str, Any] = {
            "server": ",".join(f"wss://localhost:{self._edge_port(part.name)}" for part in self.connectors),
            "quic_server": ",".join(
                f"quic://localhost:{part.app.quic_port}" for part in self.connectors if part.runs
            ),
            "ca": self.authority.certificate,
            "certificates": certificates,
            "database": self.folder / "edges.db",
            "first_delay_seconds": 0.02,
            "most_delay_seconds": 0.2,
        }
        async with EdgeFleet(EdgeSettings(**(values | changes)), node_ids) as fleet:
            async with asyncio.timeout(15):
                await fleet.connected()
            yield fleet

    # Cloud programs

    async def publish(
        self, *requests: pb.PublishRequest, through: str = "", seconds: float = 10.0
    ) -> list[pb.NodeOutcome]:
        """The outcomes of all requests, in order; `through` names another dispatcher than the first."""
        cloud: Any = DispatcherServiceStub(await self.channel(through)) if through else self.cloud
        outcomes: list[pb.NodeOutcome] = []
        for request in requests:
            outcomes.extend((await cloud.Publish(request, timeout=seconds)).outcomes)
        return outcomes

    async def accept(self, *requests: pb.PublishRequest, through: str = "") -> None:
        """Publishes what must be accepted."""
        for outcome in await self.publish(*requests, through=through):
            assert outcome.outcome == pb.OUTCOME_ACCEPTED, outcome

    @asynccontextmanager
    async def subscriber(
        self, *modules: str, max_unacknowledged: int = 0, through: str = ""
    ) -> AsyncIterator[Subscriber]:
        """Subscribed to modules while the block lasts; `through` names another dispatcher than the first."""
        cloud: Any = DispatcherServiceStub(await self.channel(through)) if through else self.cloud
        call = cloud.Subscribe(wait_for_ready=True)
        subscription = pb.Subscription(modules=modules, max_unacknowledged=max_unacknowledged)
        await call.write(pb.SubscribeRequest(subscription=subscription))
        try:
            yield Subscriber(call)
        finally:
            call.cancel()

    # Operators

    async def explain(
        self, node_id: str, *, message_id: str = "", key: str = ""
    ) -> pb.ExplainDeliveryResponse:
        """Where a message is, as an operator is told."""
        request = pb.ExplainDeliveryRequest(node_id=node_id, message_id=message_id, object_key=key)
        response: pb.ExplainDeliveryResponse = await self.dispatcher_admin.ExplainDelivery(
            request, timeout=10
        )
        return response

    async def until_state(
        self, node_id: str, key: str, state: pb.DeliveryState.ValueType, seconds: float = 10.0
    ) -> pb.ExplainDeliveryResponse:
        """The first explanation that says this state."""
        last: pb.ExplainDeliveryResponse | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    last = await self.explain(node_id, key=key)
                    if last.state == state:
                        return last
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{node_id} {key} is not {pb.DeliveryState.Name(state)}: {last}") from None

    async def session(self, node_id: str) -> sessions_pb2.Session:
        """The node's newest session as the registry has it."""
        request = sessions_pb2.GetSessionRequest(node_id=node_id)
        response = await self.sessions_admin.GetSession(request, timeout=10)
        found: sessions_pb2.Session = response.session
        return found

    async def until_session(
        self, node_id: str, condition: Callable[[sessions_pb2.Session], bool], seconds: float = 10.0
    ) -> sessions_pb2.Session:
        """The first look at the node's newest session that meets the condition."""
        last: sessions_pb2.Session | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    last = await self.session(node_id)
                    if condition(last):
                        return last
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"the session of {node_id} is {last}") from None

    async def links(self) -> Sequence[connector_pb2.Link]:
        """The connector's links."""
        listed = await self.connector_admin.ListLinks(connector_pb2.ListLinksRequest(), timeout=10)
        links: Sequence[connector_pb2.Link] = listed.links
        return links

    def holder(self, node_id: str) -> Part[DispatcherApp]:
        """The dispatcher that has the node's session."""
        return next(part for part in self.dispatchers if part.runs and node_id in part.app.delivery.sessions)

    def metric(self, service: str, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, of all replicas of a service that run; 0 if there
        are none."""
        registries: dict[str, list[CollectorRegistry]] = {
            "sessions": [part.app.metrics.registry for part in self.registries if part.runs],
            "dispatcher": [part.app.registry for part in self.dispatchers if part.runs],
            "connector": [part.app.metrics.registry for part in self.connectors if part.runs],
        }
        return sum(
            sample.value
            for registry in registries[service]
            for family in registry.collect()
            for sample in family.samples
            if sample.name == f"cloudhub_{service}_{name}" and labels.items() <= sample.labels.items()
        )

    @contextmanager
    def locked_database(self, service: str) -> Iterator[None]:
        """The service's database as another program's long transaction leaves it: no write gets in."""
        connection = sqlite3.connect(self.folder / f"{service}.db", isolation_level=None, timeout=5)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
        finally:
            connection.close()


def running_hub(
    folder: Path,
    authority: TestAuthority | None = None,
    *,
    sessions: Mapping[str, Any] | None = None,
    dispatcher: Mapping[str, Any] | None = None,
    connector: Mapping[str, Any] | None = None,
    dispatchers: int = 1,
    connectors: int = 1,
    shared_outbox: bool = False,
    registries: int = 1,
    databases: Mapping[str, str] | None = None,
    tls: bool = False,
) -> RunningHub:
    """A hub to be entered, with so many replicas of each service; mappings change a service's settings.

    Dispatchers have an outbox each, or with `shared_outbox` one together. `databases` are the URLs that
    sessions and dispatchers use instead, all replicas of a service the same one. With `tls` gRPC needs
    certificates, and `hub.security` is that of a publisher and operator.
    """
    changes = {"sessions": sessions or {}, "dispatcher": dispatcher or {}, "connector": connector or {}}
    authority = authority or TestAuthority(folder / "certificates")
    return RunningHub(
        folder, authority, changes, dispatchers, connectors, shared_outbox, registries, databases, tls
    )


def request(
    *node_ids: str,
    name: str = "cm1",
    uid: str | None = None,
    version: int | str = 1,
    operation: str = "update",
    resource: str = "",
    message_id: str = "",
    parent_id: str = "",
    content: Any = None,
    ack_mode: pb.AckMode.ValueType = pb.ACK_MODE_UNSPECIFIED,
    source: str = "edgecontroller",
    time_to_live_seconds: float = 0.0,
    size_bytes: int = 0,
) -> pb.PublishRequest:
    """One version of a config map named `name`, with `metadata.uid` (`uid-<name>` if not said)."""
    uid = f"uid-{name}" if uid is None else uid
    body = {"metadata": {"name": name, "uid": uid}, "data": "x" * size_bytes} if content is None else content
    made = pb.PublishRequest(
        message=Message(
            id=message_id,
            parent_id=parent_id,
            source=source,
            group="resource",
            operation=operation,
            resource=resource or f"default/configmap/{name}",
            resource_version=str(version),
            content=json.dumps(body).encode(),
        ),
        node_ids=node_ids or ("edge-1",),
        ack_mode=ack_mode,
    )
    if time_to_live_seconds:
        lifetime = Duration()
        lifetime.FromMilliseconds(int(time_to_live_seconds * 1000))
        made.time_to_live.CopyFrom(lifetime)
    return made

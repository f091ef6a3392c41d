"""Parts around the delivery half of a dispatcher: a clock that is moved, metrics to read, requests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.link_pb2 import DispatcherBatch
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.peer_pb2 import DirectMessage
from cloudhub.v1.sessions_pb2 import Session
from services.dispatcher.admin import DispatcherAdmin
from services.dispatcher.connector_questions import ConnectorQuestions
from services.dispatcher.connectors import ConnectorStream
from services.dispatcher.delivery import Delivery
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.node_deletion import NodeDeletion
from services.dispatcher.node_session import NodeSession
from services.dispatcher.outbox.quotas import Quotas
from services.dispatcher.outbox.records import Loaded, Op
from services.dispatcher.peers.looks import Looks
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.policy import PolicySettings
from services.dispatcher.publication import PublishLimits
from services.dispatcher.publishing import Publishing, StoreAnswer
from services.dispatcher.sessions_client import SessionsClient
from services.runtime.errors import Unavailable
from services.runtime.tracing import Tracing
from tests.support.outbox import MemoryOutbox

NOW_MS = 1_700_000_000_000
OWN_ID = "dispatcher-0"


@dataclass
class SteppedClock:
    """Stands still until it is moved."""

    seconds: float = 1000.0
    now_ms: int = NOW_MS

    def monotonic(self) -> float:
        return self.seconds

    def wall_ms(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        """Time goes by on both clocks."""
        self.seconds += seconds
        self.now_ms += int(seconds * 1000)


class Metrics(DispatcherMetrics):
    """Metrics of a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry)

    def value(self, name: str, **labels: str) -> float:
        """A sample's value; 0 if there is none."""
        return self.registry.get_sample_value(f"cloudhub_dispatcher_{name}", labels) or 0.0


def request(
    *node_ids: str,
    content: bytes = b'{"metadata":{"uid":"u1"}}',
    resource: str = "default/configmap/a",
    version: str = "1",
    operation: str = "update",
    message_id: str = "",
    parent_id: str = "",
    ack_mode: pb.AckMode.ValueType = pb.ACK_MODE_UNSPECIFIED,
) -> pb.PublishRequest:
    """A publish request as a cloud program would send it."""
    return pb.PublishRequest(
        message=Message(
            id=message_id,
            parent_id=parent_id,
            resource=resource,
            resource_version=version,
            operation=operation,
            source="edgecontroller",
            group="resource",
            content=content,
        ),
        node_ids=node_ids,
        ack_mode=ack_mode,
    )


class ReadableStream(ConnectorStream):
    """A connector's stream that can be read without waiting."""

    def taken(self) -> list[DispatcherBatch]:
        """What has been queued since the last call."""
        self._seal()
        full, self._full = self._full, []
        for _ in full:
            self.passed_on()
        return full

    def frames(self) -> list[tuple[str, bool]]:
        """(message id, direct) of what was sent since the last call, in order."""
        return [
            (Message.FromString(frame.message).id, frame.direct)
            for batch in self.taken()
            for frame in batch.downstream
        ]


class FakeSessions(SessionsClient):
    """Knows where nodes are, or does not answer."""

    def __init__(self) -> None:
        self.connected: set[str] = set()
        self.held_by: dict[str, str] = {}  # node -> dispatcher; those that are absent: this one
        self.away = False
        self.asked: list[list[str]] = []
        self.before_answer: Callable[[], Awaitable[object]] | None = None
        self.newest_epochs: dict[str, int] = {}
        self.deleted: list[str] = []

    async def delete_nodes(self, node_ids: Sequence[str]) -> list[int]:
        """The epochs of the nodes' newest sessions."""
        if self.away:
            raise Unavailable("SESSIONS_UNAVAILABLE", "sessions does not answer")
        if self.before_answer is not None:
            await self.before_answer()
        self.deleted += node_ids
        return [self.newest_epochs.pop(node_id, 0) for node_id in node_ids]

    async def locate(self, node_ids: Sequence[str]) -> dict[str, Session]:
        """The live sessions among the nodes."""
        self.asked.append(list(node_ids))
        if self.away:
            raise Unavailable("SESSIONS_UNAVAILABLE", "sessions does not answer")
        if self.before_answer is not None:
            await self.before_answer()
        return {
            node_id: Session(node_id=node_id, dispatcher_id=self.held_by.get(node_id, OWN_ID))
            for node_id in node_ids
            if node_id in self.connected
        }


class FakePeers:
    """Other dispatchers that answer what they are told to, or do not."""

    def __init__(self) -> None:
        self.answers: dict[str, pb.NodeOutcome] = {}
        self.away: set[str] = set()
        self.sent: list[tuple[str, list[str]]] = []

    async def send_direct(
        self, dispatcher_id: str, messages: Sequence[DirectMessage]
    ) -> Sequence[pb.NodeOutcome]:
        """ACCEPTED unless a node has another answer."""
        if dispatcher_id in self.away:
            raise Unavailable("PEER_UNAVAILABLE", "the node's dispatcher does not answer")
        self.sent.append((dispatcher_id, [one.node_id for one in messages]))
        accepted = pb.OUTCOME_ACCEPTED
        return [
            self.answers.get(one.node_id, pb.NodeOutcome(node_id=one.node_id, outcome=accepted))
            for one in messages
        ]


class DeliveryHalf:
    """Delivery, publishing and administration over an outbox in memory."""

    def __init__(self, settings: PolicySettings, quotas: Quotas | None, tracing: Tracing) -> None:
        self.outbox = MemoryOutbox(quotas)
        self.clock = SteppedClock()
        self.metrics = Metrics()
        self.tracing = tracing
        self.delivery = Delivery(self.outbox, settings, self.clock, self.metrics, tracing)
        self.sessions = FakeSessions()
        self.peers = FakePeers()
        self.publishing = Publishing(
            self.delivery,
            self.sessions,
            PublishLimits(),
            self.clock,
            self.metrics,
            tracing,
            OWN_ID,
            self.peers,
            NodeDeletion(self.outbox, self.sessions),
            self._submit,
        )
        looks = Looks((), PeerMetrics(CollectorRegistry()))
        connectors = ConnectorQuestions(list, self.metrics)
        self.admin = DispatcherAdmin(
            self.outbox, self.delivery, self.clock, [self.delivery], looks, connectors
        )
        self.stream = ReadableStream("c1", "connector-0")

    def _submit(self, ops: list[Op], answered: Callable[[int, StoreAnswer], None]) -> None:
        """`publishing.Submit` where there are no other dispatchers."""

        def done(results: Sequence[StoreAnswer]) -> None:
            for place, result in enumerate(results):
                answered(place, result)

        self.delivery.writer.submit(ops, done)

    async def connect(
        self, node_id: str = "edge-1", epoch: int = 1, max_window_messages: int = 0
    ) -> NodeSession:
        """The node's link opens; what was pending is sent. 0: it is a stock edge's."""
        policy = self.delivery.new_policy(node_id, epoch, self.stream, max_window_messages)
        session = NodeSession(node_id, "p1", epoch, self.stream, epoch, policy, "", self.clock.monotonic())
        self.delivery.register(session)
        (loaded,) = await self.delivery.claim([(session, False)])
        assert isinstance(loaded, Loaded)
        self.delivery.start(session, loaded)
        self.sessions.connected.add(node_id)
        return session

    async def publish(self, *requests: pb.PublishRequest, traceparent: str = "") -> list[pb.PublishResponse]:
        """One response per request."""
        return await self.publishing.publish(requests, traceparent)

    async def settled(self) -> None:
        """Returns when everything asked of the store is done."""
        await self.delivery.writer.flush()


@asynccontextmanager
async def running_delivery_half(
    settings: PolicySettings | None = None, quotas: Quotas | None = None, tracing: Tracing | None = None
) -> AsyncIterator[DeliveryHalf]:
    """At work until the block ends."""
    half = DeliveryHalf(settings or PolicySettings(), quotas, tracing or Tracing(None, "dispatcher"))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(half.delivery.run()), group.create_task(half.publishing.run())]
        yield half
        for task in tasks:
            task.cancel()

"""PeerService: what other dispatchers ask of this one."""

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import peer_pb2
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.peer_pb2_grpc import PeerServiceServicer
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.dispatcher.delivery import Delivery
from services.dispatcher.outbox.records import ObjectRow, RowState
from services.dispatcher.peers.directory import Peers
from services.dispatcher.peers.forward_intake import ForwardIntake
from services.dispatcher.peers.looks import MAX_NODES, MAX_OBJECTS
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.publication import parse_version
from services.dispatcher.sizes import MAX_BODY_BYTES, check_number, too_large
from services.dispatcher.standing import standing_in
from services.dispatcher.upstream.subscriptions import check_acknowledged, check_modules, serve_deliveries
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.errors import InvalidRequest
from services.runtime.logs import get_log
from services.runtime.names import check_instance_id, check_label
from services.runtime.tracing import Tracing

_log = get_log(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


def check_relay(wanted: peer_pb2.RelaySubscription) -> tuple[list[str], int]:
    """The modules and the credit that a relay asks for; InvalidRequest names what is wrong."""
    modules = check_modules(wanted.modules)
    if modules and not wanted.max_unacknowledged:
        raise InvalidRequest("subscription.max_unacknowledged", "should be above 0 to get anything")
    return modules, wanted.max_unacknowledged


def _check_id(field: str, message: Message) -> None:
    """What happens to the message is written under its id."""
    if not message.id or not message.id.isprintable():
        raise InvalidRequest(field, f"should be a message id; got {message.id[:64]!r}")


def accepted_rows(at: str, hint: peer_pb2.NodeHint) -> list[ObjectRow]:
    """The rows that another dispatcher has committed for a node; InvalidRequest names the field, below `at`,
    that no row can have."""
    return [
        _accepted_row(f"{at}.messages[{index}]", hint.node_id, handed)
        for index, handed in enumerate(hint.messages)
    ]


def _accepted_row(at: str, node_id: str, handed: peer_pb2.HandedMessage) -> ObjectRow:
    try:
        message = Message.FromString(handed.message)
    except DecodeError as error:
        raise InvalidRequest(f"{at}.message", f"should be an encoded Message: {error}") from error
    _check_id(f"{at}.message.id", message)
    for field, value in (("object_key", handed.object_key), ("seq", handed.seq)):
        if not value:
            raise InvalidRequest(f"{at}.{field}", "is missing")
    version = parse_version(handed.version) if handed.version else None
    if handed.version and version is None:
        raise InvalidRequest(f"{at}.version", f"should be a version; got {handed.version[:64]!r}")
    return ObjectRow(
        node_id,
        handed.object_key,
        path=message.resource,
        deleted=handed.is_delete,
        state=RowState.PENDING,
        seq=handed.seq,
        message_id=message.id,
        version=version,
        operation=message.operation,
        is_answer=handed.is_answer,
        priority=handed.priority,
        accepted_at_ms=handed.accepted_at_ms,
        expires_at_ms=handed.expires_at_ms,
        size_bytes=handed.size_bytes,
        traceparent=message.traceparent,
        body=handed.message,
    )


def look_at(delivery: Delivery, node_id: str) -> peer_pb2.NodeLook:
    """What this process alone knows of a node."""
    session = delivery.sessions.get(node_id)
    return peer_pb2.NodeLook(
        node_id=node_id,
        connected=session is not None and session.active,
        epoch=session.epoch if session else 0,
        in_flight=session.policy.in_flight if session else 0,
        last_note=delivery.notices.last(node_id),
    )


def looks_at_objects(
    delivery: Delivery, objects: Iterable[peer_pb2.ObjectOfNode]
) -> Iterator[peer_pb2.ObjectLook]:
    """How those among the objects stand whose node has a session in this process."""
    for one in objects:
        session = delivery.sessions.get(one.node_id)
        if session is not None and session.active:
            standing = standing_in(session.epoch, session.policy, one.object_key)
            yield peer_pb2.ObjectLook(
                node_id=one.node_id,
                object_key=one.object_key,
                epoch=standing.epoch,
                in_flight=standing.in_flight,
                blocked_by=standing.blocked_by,
                doubtful_links=standing.doubtful_links,
            )


def _check_caller(wanted: peer_pb2.RelaySubscription) -> None:
    """The first request of a stream says which dispatcher calls; it is called back."""
    for field, fault in (
        ("dispatcher_id", check_instance_id(wanted.dispatcher_id)),
        ("name", check_label(wanted.name)),
        ("address", check_label(wanted.address)),
    ):
        if fault:
            raise InvalidRequest(f"subscription.{field}", fault)


class PeerServicer(PeerServiceServicer):
    """For other dispatchers."""

    def __init__(
        self, delivery: Delivery, upstream: Upstream, peers: Peers, metrics: PeerMetrics, tracing: Tracing
    ) -> None:
        self._delivery = delivery
        self._upstream = upstream
        self._peers = peers
        self._metrics = metrics
        self._tracing = tracing

    async def Hint(self, request: peer_pb2.HintRequest, context: Context) -> peer_pb2.HintResponse:
        """See peer.proto."""
        check_number("hints", request.hints)
        check_number("hints[].messages", [one for hint in request.hints for one in hint.messages])
        # All checked before any is handled.
        rows = [accepted_rows(f"hints[{index}]", hint) for index, hint in enumerate(request.hints)]
        not_here = [
            hint.node_id
            for hint, accepted in zip(request.hints, rows, strict=True)
            if not self._delivery.hinted(hint.node_id, hint.last_seq, accepted)
        ]
        self._metrics.hinted.labels("here").inc(len(request.hints) - len(not_here))
        self._metrics.hinted.labels("elsewhere").inc(len(not_here))
        return peer_pb2.HintResponse(not_here=not_here)

    async def Forward(  # type: ignore[override]  # the coroutine form, with context.read and write
        self, _: object, context: grpc.aio.ServicerContext[peer_pb2.ForwardRequest, peer_pb2.ForwardResponse]
    ) -> None:
        """See peer.proto."""
        await ForwardIntake(self._delivery, self._tracing).serve(context)

    async def SendDirect(
        self, request: peer_pb2.SendDirectRequest, context: Context
    ) -> peer_pb2.SendDirectResponse:
        """See peer.proto."""
        check_number("messages", request.messages)
        for index, one in enumerate(request.messages):
            _check_id(f"messages[{index}].message.id", one.message)
        return peer_pb2.SendDirectResponse(outcomes=[self._direct(one) for one in request.messages])

    def _direct(self, wanted: peer_pb2.DirectMessage) -> pb.NodeOutcome:
        outcome = pb.NodeOutcome(node_id=wanted.node_id)
        # Not what the caller says of it: a former release counts the content alone.
        size_bytes = wanted.message.ByteSize()
        session = self._delivery.sessions.get(wanted.node_id)
        if session is None or not session.active:
            outcome.outcome, outcome.reason = pb.OUTCOME_NO_SESSION, "NOT_CONNECTED"
            self._delivery.dropped(wanted.node_id, wanted.message.id, "no_session")
        elif self._delivery.direct(session, wanted.message, size_bytes):
            outcome.outcome = pb.OUTCOME_ACCEPTED
        elif size_bytes > MAX_BODY_BYTES:
            outcome.outcome, outcome.reason = pb.OUTCOME_REJECTED, "MESSAGE_TOO_LARGE"
            outcome.field, outcome.detail = "message", too_large(size_bytes)
        else:
            outcome.outcome, outcome.reason = pb.OUTCOME_REJECTED, "LANE_FULL"
            outcome.field, outcome.detail = "node_ids", "the node's link does not keep up"
        return outcome

    async def LookAtNodes(
        self, request: peer_pb2.LookAtNodesRequest, context: Context
    ) -> peer_pb2.LookAtNodesResponse:
        """See peer.proto."""
        if len(request.node_ids) > MAX_NODES:
            raise InvalidRequest("node_ids", f"{len(request.node_ids)} in one request; at most {MAX_NODES}")
        if len(request.objects) > MAX_OBJECTS:
            raise InvalidRequest("objects", f"{len(request.objects)} in one request; at most {MAX_OBJECTS}")
        looks = (look_at(self._delivery, node_id) for node_id in request.node_ids)
        return peer_pb2.LookAtNodesResponse(
            nodes=[one for one in looks if one.connected or one.last_note],
            objects=looks_at_objects(self._delivery, request.objects),
            looked_at_objects=True,
        )

    async def Relay(
        self, request_iterator: AsyncIterator[peer_pb2.RelayRequest], context: Context
    ) -> AsyncIterator[peer_pb2.RelayResponse]:
        """See peer.proto."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None:
            return
        wanted, upstream = first.subscription, self._upstream
        _check_caller(wanted)
        modules, credit = check_relay(wanted)
        heard = wanted.number
        caller = DispatcherPeer(dispatcher_id=wanted.dispatcher_id, name=wanted.name, address=wanted.address)
        seat = upstream.subscribe(modules, credit, is_relay=True)
        self._peers.introduced(caller)
        _log.info("relay.opened", modules=modules, dispatcher=wanted.dispatcher_id, subscriber=seat.number)

        def handle(request: peer_pb2.RelayRequest) -> None:
            nonlocal heard
            if request.HasField("subscription"):
                upstream.resubscribe(seat.number, *check_relay(request.subscription))
                heard = request.subscription.number
            if request.returned:
                upstream.give_back(seat.number, check_acknowledged(request.returned, "returned"))
            upstream.acknowledge(seat.number, check_acknowledged(request.acknowledged))

        async for deliveries in serve_deliveries(upstream, seat, requests, handle, context):
            yield peer_pb2.RelayResponse(deliveries=deliveries, subscription=heard)

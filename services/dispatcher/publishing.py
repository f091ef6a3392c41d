"""Publishing: check, store, tell the caller, hand over."""

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from opentelemetry.trace import Span, SpanKind

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.peer_pb2 import DirectMessage
from services.dispatcher.delivery import MESSAGING, Delivery
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.node_deletion import Fences, NodeDeletion, check_deletion, node_to_delete
from services.dispatcher.outbox.records import (
    Accept,
    Accepted,
    Deleted,
    DeleteNode,
    Duplicate,
    Event,
    EventKind,
    ObjectRow,
    Op,
    Result,
)
from services.dispatcher.outcomes import fit, reject, tell, unavailable
from services.dispatcher.publication import (
    Publication,
    PublishLimits,
    Rejection,
    check_request,
    strip_node_prefix,
)
from services.dispatcher.sessions_client import SessionsClient
from services.runtime.batching import Batcher, portions
from services.runtime.clock import Clock
from services.runtime.errors import HubError
from services.runtime.ids import new_id
from services.runtime.logs import get_log
from services.runtime.names import MOST_NODE_ID_CHARS, check_node_id, cut_bytes
from services.runtime.rpc import MAX_ANSWER_BYTES
from services.runtime.tracing import ORIGIN_NS, Tracing, fail, is_sampled, span_context, traceparent_of

_log = get_log(__name__)

# Outcomes that make a publish a large one: it lets others have their turn while it is checked and stored.
LARGE_OUTCOMES = 1024
MAX_NODES_PER_TURN = 256
# Unspecified: nothing was done about it before its caller left.
_NOT_TURNED_DOWN = frozenset({pb.OUTCOME_ACCEPTED, pb.OUTCOME_UNSPECIFIED})
# NO-ACK messages given to another dispatcher at once.
MAX_DIRECT_PER_CALL = 256
MAX_DIRECT_BYTES_PER_CALL = 4 * 1024 * 1024

# What came of an operation: here, or as the dispatcher says that has the node's session.
StoreAnswer = Result | Exception | pb.NodeOutcome


class Submit(Protocol):
    """The way to the store, as publishing needs it."""

    def __call__(self, ops: list[Op], answered: Callable[[int, StoreAnswer], None]) -> None:
        """Calls `answered` with the place of an operation and what came of it as soon as it is durable or has
        failed: none waits for those of other nodes. Of one node, what is submitted first is answered first.
        Raises Unavailable when too many wait already."""
        ...


class PeerPort(Protocol):
    """The other dispatchers, as publishing needs them."""

    async def send_direct(
        self, dispatcher_id: str, messages: Sequence[DirectMessage]
    ) -> Sequence[pb.NodeOutcome]:
        """One outcome per NO-ACK message, in order. Raises HubError if that dispatcher does not answer."""
        ...


@dataclass(slots=True)
class _Request:
    """One request on its way: what it asks for, its response with a slot per node, its span."""

    # None: it deletes a node.
    checked: Publication | Rejection | None
    response: pb.PublishResponse
    span: Span | None = None
    started_ns: int = 0

    @property
    def publication(self) -> Publication:
        """Of a request that was not refused."""
        assert isinstance(self.checked, Publication)
        return self.checked


@dataclass(slots=True)
class _Work:
    """What a batch of requests still waits for; it is accepted at one instant."""

    at_ms: int = 0
    requests: list[_Request] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    slots: list[tuple[_Request, pb.NodeOutcome]] = field(default_factory=list)  # one per operation
    lookups: list[tuple[_Request, pb.NodeOutcome]] = field(default_factory=list)
    # by the dispatcher that has the node's session
    forwards: defaultdict[str, list[tuple[_Request, pb.NodeOutcome]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    # Done when the store has answered everything; None before it was asked.
    stored: asyncio.Future[None] | None = None
    # The store's answers, by the place of their slots, that were not handled as they came.
    untold: deque[tuple[int, StoreAnswer]] = field(default_factory=deque)


class Publishing:
    """Publishes batches of requests. `run` must be awaited by the owner."""

    def __init__(
        self,
        delivery: Delivery,
        sessions: SessionsClient,
        limits: PublishLimits,
        clock: Clock,
        metrics: DispatcherMetrics,
        tracing: Tracing,
        dispatcher_id: str,
        peers: PeerPort,
        deletion: NodeDeletion,
        submit: Submit,
    ) -> None:
        self._delivery = delivery
        self._deletion = deletion
        self._submit = submit
        self._id = dispatcher_id
        self._peers = peers
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._tracing = tracing
        self._locations: Batcher[tuple[str, ...], dict[str, str]] = Batcher(self._locate)
        self._sessions = sessions

    async def run(self) -> None:
        """Answers look-ups of nodes until cancelled."""
        await self._locations.run()

    async def _locate(self, asked: Sequence[tuple[str, ...]]) -> list[dict[str, str]]:
        """Which of the nodes are connected now, and to which dispatcher, as the registry says."""
        found = await self._sessions.locate(sorted({node_id for nodes in asked for node_id in nodes}))
        return [
            {node_id: found[node_id].dispatcher_id for node_id in nodes if node_id in found}
            for nodes in asked
        ]

    async def publish(
        self, requests: Sequence[pb.PublishRequest], traceparent: str
    ) -> list[pb.PublishResponse]:
        """One response per request, in order, when every outcome is known.

        `traceparent` is the call's own context; a message's own goes before it.
        """
        work = _Work()
        deletes_nodes = any(node_to_delete(request) is not None for request in requests)
        fences = await self._deletion.end_sessions(requests) if deletes_nodes else None
        work.at_ms = self._clock.wall_ms()
        is_large = sum(len(request.node_ids) for request in requests) > LARGE_OUTCOMES
        try:
            for request in requests:
                self._prepare(work, request, traceparent, fences)
                if not is_large:
                    self._address_all(work, work.requests[-1], request.node_ids)
                    continue
                for start in range(0, len(request.node_ids), MAX_NODES_PER_TURN):
                    node_ids = request.node_ids[start : start + MAX_NODES_PER_TURN]
                    self._address_all(work, work.requests[-1], node_ids)
                    await asyncio.sleep(0)
            if work.lookups:
                await self._look_up(work)
            if work.forwards:
                async with asyncio.TaskGroup() as group:
                    for dispatcher_id, slots in work.forwards.items():
                        group.create_task(self._forward(dispatcher_id, slots), name="forward")
                    if work.ops:
                        await self._store(work)
            elif work.ops:
                await self._store(work)
        except asyncio.CancelledError:
            self._leave(work)
            raise
        responses = [self._finish(request) for request in work.requests]
        self._count(responses)
        if is_large:
            for response in responses:
                fit(response, MAX_ANSWER_BYTES)
        return responses

    # -- checking ----------------------------------------------------------------------------------

    def _prepare(
        self, work: _Work, request: pb.PublishRequest, call_context: str, fences: Fences | None
    ) -> None:
        context = request.message.traceparent or call_context
        if context and span_context(context) is None:
            context = ""  # malformed: as if there were none (W3C Trace Context, 3.2.2.3)
        item = _Request(None, pb.PublishResponse(message_id=request.message.id or new_id()))
        if self._tracing.enabled and (not context or is_sampled(context)):
            item.started_ns = time.time_ns()
            item.span = self._tracing.start(
                "publish",
                context,
                kind=SpanKind.PRODUCER,
                start_ns=item.started_ns,
                attributes={
                    **MESSAGING,
                    "messaging.message.id": item.response.message_id,
                    "messaging.destination.name": strip_node_prefix(request.message.resource),
                    "cloudhub.nodes": len(request.node_ids),
                },
            )
            if len(request.node_ids) == 1:
                item.span.set_attribute("cloudhub.node.id", request.node_ids[0])
            context = traceparent_of(item.span)
        work.requests.append(item)
        if fences is not None and (deleted := node_to_delete(request)) is not None:
            self._prepare_deletion(work, item, request, deleted, fences)
            return
        checked = check_request(request, self._limits, item.response.message_id, work.at_ms, context)
        item.checked = checked
        if isinstance(checked, Publication) and item.span is not None:
            item.span.set_attribute("cloudhub.ack_mode", "ack" if checked.acknowledged else "no_ack")
        if not request.node_ids:
            fault = Rejection("NODES_MISSING", "node_ids", "names no node")
            reject(item.response.outcomes.add(), checked if isinstance(checked, Rejection) else fault)

    def _address_all(self, work: _Work, item: _Request, node_ids: Sequence[str]) -> None:
        """An outcome for each of these nodes, and what has to be done for it."""
        checked, outcomes = item.checked, item.response.outcomes
        if isinstance(checked, Publication):
            for node_id in node_ids:
                self._address(work, item, checked, outcomes.add(node_id=node_id))
        elif isinstance(checked, Rejection):
            for node_id in node_ids:
                outcome = outcomes.add(node_id=cut_bytes(node_id, MOST_NODE_ID_CHARS))
                reject(outcome, checked)
                self._note(work, outcome, item.response.message_id)

    def _prepare_deletion(
        self, work: _Work, item: _Request, request: pb.PublishRequest, deleted: str, fences: Fences
    ) -> None:
        fault = check_deletion(deleted, request.node_ids)
        for node_id in request.node_ids or (deleted,):
            outcome = item.response.outcomes.add(node_id=node_id)
            fence = 0 if fault else fences[deleted]
            if fault:
                reject(outcome, fault)
            elif isinstance(fence, HubError):
                unavailable(outcome, fence)
            else:
                work.ops.append(DeleteNode(deleted, fence))
                work.slots.append((item, outcome))

    def _address(
        self, work: _Work, item: _Request, publication: Publication, outcome: pb.NodeOutcome
    ) -> None:
        fault = check_node_id(outcome.node_id)
        if fault:
            outcome.node_id = cut_bytes(outcome.node_id, MOST_NODE_ID_CHARS)
            reject(outcome, Rejection("NODE_ID_MALFORMED", "node_ids", fault))
        elif publication.acknowledged and not publication.is_answer:
            work.ops.append(Accept(outcome.node_id, publication, work.at_ms))
            work.slots.append((item, outcome))
        elif not self._to_session(work, item, publication, outcome):
            work.lookups.append((item, outcome))

    def _note(self, work: _Work, outcome: pb.NodeOutcome, message_id: str) -> None:
        """A refusal of a well-formed node id stands in that node's history too."""
        if check_node_id(outcome.node_id) is None:
            event = Event(
                outcome.node_id,
                EventKind.REJECTED,
                work.at_ms,
                message_id[:1024].replace(
                    "\0", "\ufffd"
                ),  # PostgreSQL would refuse it, and all written with it
                reason=outcome.reason,
            )
            work.ops.append(event)
            work.slots.append((work.requests[-1], outcome))

    # -- messages that cannot wait -----------------------------------------------------------------

    def _to_session(
        self, work: _Work, item: _Request, publication: Publication, outcome: pb.NodeOutcome
    ) -> bool:
        """Hands a message that cannot wait to the node's session; False if there is none here."""
        session = self._delivery.sessions.get(outcome.node_id)
        if session is None or not session.active:
            return False
        if publication.acknowledged:
            work.ops.append(Accept(outcome.node_id, publication, work.at_ms))
            work.slots.append((item, outcome))
        elif self._delivery.direct(session, publication.message, publication.size_bytes):
            outcome.outcome = pb.OUTCOME_ACCEPTED
        else:
            reject(outcome, Rejection("LANE_FULL", "node_ids", "the node's link does not keep up"))
        return True

    async def _look_up(self, work: _Work) -> None:
        """One fresh look-up for all messages that found no session here."""
        try:
            found = await self._locations.call(tuple(outcome.node_id for _, outcome in work.lookups))
        except HubError as error:
            for _, outcome in work.lookups:
                unavailable(outcome, error)
            return
        for number, (item, outcome) in enumerate(work.lookups, 1):
            if not number % MAX_NODES_PER_TURN:
                await asyncio.sleep(0)
            publication = item.publication
            holder = found.get(outcome.node_id)
            if holder is not None and self._to_session(work, item, publication, outcome):
                continue
            if not holder or holder == self._id:
                outcome.outcome = pb.OUTCOME_NO_SESSION
                outcome.reason = "NOT_CONNECTED"
                self._delivery.dropped(outcome.node_id, item.response.message_id, "no_session")
            elif publication.acknowledged:
                work.ops.append(Accept(outcome.node_id, publication, work.at_ms))
                work.slots.append((item, outcome))
            else:
                work.forwards[holder].append((item, outcome))

    async def _forward(self, dispatcher_id: str, slots: list[tuple[_Request, pb.NodeOutcome]]) -> None:
        """NO-ACK messages by way of the dispatcher that has their nodes' sessions."""
        # Each is a copy: a message for thousands of nodes is copied for some of them at a time.
        for portion in portions(slots, _slot_bytes, MAX_DIRECT_PER_CALL, MAX_DIRECT_BYTES_PER_CALL):
            messages = [
                DirectMessage(
                    node_id=outcome.node_id,
                    message=item.publication.message,
                    size_bytes=item.publication.size_bytes,
                )
                for item, outcome in portion
            ]
            try:
                told = await self._peers.send_direct(dispatcher_id, messages)
            except HubError as error:
                for _, outcome in portion:
                    unavailable(outcome, error)
                continue
            for (_, outcome), one in zip(portion, told, strict=True):
                outcome.CopyFrom(one)

    # -- messages that are stored ------------------------------------------------------------------

    async def _store(self, work: _Work) -> None:
        started_ns = time.time_ns()
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = len(work.slots)
        is_large = left > LARGE_OUTCOMES

        def answered(place: int, answer: StoreAnswer) -> None:
            nonlocal left
            left -= 1
            if is_large:
                work.untold.append((place, answer))
            else:
                self._settle(*work.slots[place], answer, started_ns)
            if not left:
                stored.set_result(None)

        try:
            self._submit(work.ops, answered)
        except HubError as error:
            for _, outcome in work.slots:
                if outcome.outcome == pb.OUTCOME_UNSPECIFIED:
                    unavailable(outcome, error)
            return
        work.stored = stored
        await asyncio.shield(stored)  # which is not the caller's alone: see _leave
        while work.untold:
            place, answer = work.untold.popleft()
            self._settle(*work.slots[place], answer, started_ns)
            if not len(work.untold) % MAX_NODES_PER_TURN:
                await asyncio.sleep(0)

    def _settle(self, item: _Request, outcome: pb.NodeOutcome, result: StoreAnswer, started_ns: int) -> None:
        """What the store said, for the caller; and the hand-over to the node's session."""
        if not _tell(outcome, result):
            return
        if isinstance(result, (Accepted, Duplicate)):
            if item.span is not None and isinstance(result, Accepted):
                trace_write(self._tracing, traceparent_of(item.span), result.row, started_ns)
            self._delivery.committed(outcome.node_id, result)
        elif isinstance(result, Deleted):
            _log.info(
                "node.deleted",
                node=outcome.node_id,
                message_id=item.response.message_id,
                pending=result.pending,
            )

    # -- answering ---------------------------------------------------------------------------------

    def _leave(self, work: _Work) -> None:
        """The caller is gone. What the store was asked is done all the same: all counts, and traces end. Who
        sends to the nodes of a large publish finds by itself what is new."""

        def told(_: object = None) -> None:
            for place, answer in work.untold:
                _tell(work.slots[place][1], answer)
            self._count([self._finish(request) for request in work.requests])

        if work.stored is None:
            told()
        else:
            work.stored.add_done_callback(told)

    def _count(self, responses: list[pb.PublishResponse]) -> None:
        told: Counter[tuple[pb.Outcome.ValueType, str]] = Counter()
        accepted = 0
        for response in responses:
            for one in response.outcomes:
                outcome = one.outcome
                if outcome == pb.OUTCOME_ACCEPTED:  # the rule; it has no reason
                    accepted += 1
                elif outcome != pb.OUTCOME_UNSPECIFIED:
                    told[outcome, one.reason] += 1
        if accepted:
            told[pb.OUTCOME_ACCEPTED, ""] = accepted
        for (outcome, reason), count in told.items():
            name = pb.Outcome.Name(outcome).removeprefix("OUTCOME_").lower()
            self._metrics.published.labels(name, reason.lower()).inc(count)

    def _finish(self, item: _Request) -> pb.PublishResponse:
        if item.span is not None:
            if item.span.is_recording():
                item.response.trace_id = f"{item.span.get_span_context().trace_id:032x}"
                turned_down = [one for one in item.response.outcomes if one.outcome not in _NOT_TURNED_DOWN]
                reasons = sorted({one.reason for one in turned_down})
                item.span.set_attribute("cloudhub.reasons", reasons)
                if len(reasons) == 1:
                    # Searches compare whole values.
                    item.span.set_attribute("cloudhub.reason", reasons[0])
                # A stale version is no fault: the node has, or gets, what is newer.
                faults = {one.reason for one in turned_down if one.outcome != pb.OUTCOME_STALE}
                if faults:
                    fail(item.span, ", ".join(sorted(faults)))
            # A moment: what comes after days stands below it (runtime.tracing.ORIGIN_NS).
            item.span.end(item.started_ns + ORIGIN_NS)
        return item.response


def _tell(outcome: pb.NodeOutcome, answer: StoreAnswer) -> bool:
    """Fills in a node's outcome; False if it was known, as of a refusal that was only noted."""
    if outcome.outcome != pb.OUTCOME_UNSPECIFIED:
        return False
    if isinstance(answer, pb.NodeOutcome):
        outcome.MergeFrom(answer)
    else:
        tell(outcome, answer)
    return True


def _slot_bytes(slot: tuple[_Request, pb.NodeOutcome]) -> int:
    return slot[0].publication.size_bytes


def trace_write(tracing: Tracing, context: str, row: ObjectRow, started_ns: int) -> None:
    """The span of an accepted message's way into the store, in the trace of its publish."""
    if not is_sampled(context):
        return
    tracing.record(
        "outbox write",
        context,
        start_ns=started_ns,
        attributes={
            **MESSAGING,
            "messaging.message.id": row.message_id,
            "messaging.destination.name": row.path,
            "cloudhub.node.id": row.node_id,
            "cloudhub.seq": row.seq,
        },
    )

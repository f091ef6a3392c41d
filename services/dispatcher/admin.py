"""DispatcherAdmin: where messages are, and what operators can do about them."""

import base64
import binascii
from collections.abc import Sequence

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.connector_pb2 import DrainResponse, ListLinksResponse
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminServicer
from cloudhub.v1.resources_pb2 import DispatcherResources, GetResourcesRequest
from services.dispatcher.connector_questions import ConnectorQuestions
from services.dispatcher.delivery import Delivery
from services.dispatcher.explanation import (
    Explained,
    delivery_state,
    event_kind_name,
    explain_events,
    explain_row,
    is_acknowledged,
)
from services.dispatcher.outbox.contract import NodeFilter, NodeSummary, Outbox
from services.dispatcher.outbox.records import Event, ObjectRow, RowState
from services.dispatcher.peers.looks import Looked, Looks, with_looks
from services.dispatcher.publication import MOST_LIFETIME_MS
from services.dispatcher.resources import Holder, dispatcher_resources
from services.dispatcher.standing import Standing, newer, standing_in
from services.runtime.batching import portions
from services.runtime.clock import Clock
from services.runtime.errors import InvalidRequest, NotFound
from services.runtime.names import check_node_id, shown
from services.runtime.rpc import MAX_ANSWER_BYTES
from services.runtime.tracing import trace_id_of

Context = grpc.aio.ServicerContext[object, object]
MAX_NOTES = 50
MOST_EVENTS = 1000
_MOST_TIMES = 2**32 - 1


def _timestamp(ms: int) -> Timestamp | None:
    if not ms:
        return None
    stamp = Timestamp()
    stamp.FromMilliseconds(ms)
    return stamp


def _page_size(size: int) -> int:
    if size > 1000:
        raise InvalidRequest("page_size", f"{size}; at most 1000")
    return size or 100


def _token(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def _from_token(token: str) -> str:
    try:
        return _stored_name("page_token", base64.b64decode(token.encode(), b"-_", validate=True).decode())
    except (binascii.Error, UnicodeError):
        raise InvalidRequest("page_token", "is not a next_page_token of this call") from None


def _stored_name(field: str, text: str) -> str:
    """An object key or message id; PostgreSQL would refuse a NUL in the query."""
    if "\0" in text:
        raise InvalidRequest(field, f"has a NUL character, as no stored one has: {text[:80]!r}")
    return text


def _node_id(text: str) -> str:
    fault = check_node_id(text)
    if fault:
        raise InvalidRequest("node_id", fault)
    return text


def unknown_node(node_id: str) -> NotFound:
    """What a call about a node is answered that nothing is known of."""
    return NotFound(
        "NODE_UNKNOWN",
        f"the hub knows no node {node_id}: it never connected, and no message to it is kept",
        node_id=node_id,
    )


def _unknown_object(node_id: str, message: str, name: str) -> NotFound:
    what = message or f"object {shown(name)}"
    return NotFound("MESSAGE_UNKNOWN", f"node {node_id} has no {what}, or its history has been dropped")


class DispatcherAdmin(DispatcherAdminServicer):
    """For operators."""

    def __init__(
        self,
        outbox: Outbox,
        delivery: Delivery,
        clock: Clock,
        holders: Sequence[Holder],
        looks: Looks,
        connectors: ConnectorQuestions,
    ) -> None:
        self._outbox = outbox
        self._delivery = delivery
        self._clock = clock
        self._holders = holders
        self._looks = looks
        self._connectors = connectors

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:
        """See dispatcher.proto."""
        size = _page_size(request.page_size)
        older = 0
        if request.HasField("oldest_pending_over"):
            over_ms = request.oldest_pending_over.ToMilliseconds()
            if not 0 <= over_ms <= MOST_LIFETIME_MS:
                raise InvalidRequest("oldest_pending_over", "should be between 0 and 100 years")
            older = self._clock.wall_ms() - over_ms
        only = NodeFilter(_stored_name("node_id_prefix", request.node_id_prefix), request.only_parked, older)
        found = await self._outbox.list_nodes(_from_token(request.page_token), size + 1, only)
        response = pb.ListNodesResponse(
            nodes=[self._node(summary) for summary in found[:size]],
            next_page_token=_token(found[size - 1].node.node_id) if len(found) > size else "",
            everywhere=request.everywhere,
        )
        if request.everywhere:
            node_ids = [node.node_id for node in response.nodes]
            looked = await self._looks.at(context.time_remaining(), node_ids)
            with_looks(response.nodes, looked.nodes)
            response.silent.extend(looked.silent)
        return response

    async def InspectNode(self, request: pb.InspectNodeRequest, context: Context) -> pb.InspectNodeResponse:
        """See dispatcher.proto."""
        node_id, size = _node_id(request.node_id), _page_size(request.page_size)
        token = _from_token(request.page_token)
        after_seq = token or "0"
        if not request.all and not (after_seq.isascii() and after_seq.isdigit() and len(after_seq) <= 18):
            raise InvalidRequest("page_token", "is not a next_page_token of this call")
        summary = await self._outbox.summary(node_id)
        if summary is None:
            raise unknown_node(node_id)
        if request.all:
            rows = await self._outbox.objects_of(node_id, token, size + 1)
        else:
            rows = await self._outbox.pending(node_id, int(after_seq), size + 1)
        looked = await self._elsewhere(request.everywhere, context, rows[:size], [node_id])
        # A page has fewer objects where their names are long.
        told = (self._object(row, looked) for row in rows)
        objects = next(portions(told, _size_of, size, MAX_ANSWER_BYTES), [])
        response = pb.InspectNodeResponse(
            node=self._node(summary), objects=objects, everywhere=request.everywhere, silent=looked.silent
        )
        with_looks([response.node], looked.nodes)
        if len(rows) > len(objects):
            last = objects[-1]
            response.next_page_token = _token(last.object_key if request.all else str(last.seq))
        if not token:
            response.notes.extend(map(_event, await self._outbox.notes(node_id, MAX_NOTES)))
        return response

    async def FindObject(self, request: pb.FindObjectRequest, context: Context) -> pb.FindObjectResponse:
        """See dispatcher.proto."""
        name, size = _stored_name("object", request.object), _page_size(request.page_size)
        if not name:
            raise InvalidRequest("object", "should be an object's metadata.uid or NAMESPACE/TYPE/NAME")
        found = await self._outbox.on_nodes(
            name,
            _from_token(request.page_token),
            size + 1,
            _stored_name("node_id_prefix", request.node_id_prefix),
        )
        rows = [row for _, row in found[:size] if row is not None]
        looked = await self._elsewhere(request.everywhere, context, rows)
        told = (
            pb.ObjectOnNode(node_id=node_id, object=None if row is None else self._object(row, looked))
            for node_id, row in found
        )
        nodes = next(portions(told, _size_of, size, MAX_ANSWER_BYTES), [])
        return pb.FindObjectResponse(
            nodes=nodes,
            next_page_token=_token(nodes[-1].node_id) if len(found) > len(nodes) else "",
            everywhere=request.everywhere,
            silent=looked.silent,
        )

    async def ExplainDelivery(
        self, request: pb.ExplainDeliveryRequest, context: Context
    ) -> pb.ExplainDeliveryResponse:
        """See dispatcher.proto."""
        node_id = _node_id(request.node_id)
        message_id = _stored_name("message_id", request.message_id)
        key = _stored_name("object_key", request.object_key)
        if bool(message_id) == bool(key):
            raise InvalidRequest("message_id", "name either message_id or object_key")
        row = await self._outbox.find(node_id, message_id, key)
        if row is not None and not message_id:
            key = row.key  # it may have been named by its path
        events = await self._outbox.history(node_id, message_id, key, MOST_EVENTS)
        if row is None and not events:
            await self._check_known(node_id)
            raise _unknown_object(node_id, f"message {shown(message_id)}" if message_id else "", key)
        looked = await self._elsewhere(request.everywhere, context, [] if row is None else [row])
        response = pb.ExplainDeliveryResponse(
            node_id=node_id,
            message_id=message_id or (row.message_id if row else ""),
            everywhere=request.everywhere,
            silent=looked.silent,
        )
        if row is not None:
            response.object.CopyFrom(self._object(row, looked))
        if row is not None and (not message_id or row.message_id == message_id):
            response.state = response.object.state
            response.trace_id = trace_id_of(row.traceparent)
            where = " to any dispatcher that answered" if looked.silent else ""
            response.explanation = explain_row(
                row,
                self._standing(row, looked),
                where=where if request.everywhere else " to this dispatcher",
            )
        else:
            response.state, response.explanation = explain_events(events)
        # The newest ones, as far as an answer has room.
        told = next(portions(map(_event, reversed(events)), _size_of, MOST_EVENTS, MAX_ANSWER_BYTES), [])
        response.events.extend(reversed(told))
        return response

    async def explain_message(self, node_id: str, message_id: str) -> Explained:
        """For programs, which may ask often: the node's history is read only for a message that is not its
        object's present one. Raises NotFound."""
        row = await self._outbox.find(_node_id(node_id), _stored_name("message_id", message_id), "")
        if row is not None and row.message_id == message_id:
            standing = self._standing(row)
            return delivery_state(row, standing), explain_row(row, standing)
        events = await self._outbox.history(node_id, message_id, "", MOST_EVENTS)
        if row is None and not events:
            await self._check_known(node_id)
            raise _unknown_object(node_id, f"message {shown(message_id)}", "")
        return explain_events(events)

    async def _elsewhere(
        self, everywhere: bool, context: Context, rows: Sequence[ObjectRow], node_ids: Sequence[str] = ()
    ) -> Looked:
        """What the other dispatchers know of these nodes, and of what waits for them."""
        if not everywhere:
            return Looked()
        waiting = [(row.node_id, row.key) for row in rows if row.state == RowState.PENDING]
        return await self._looks.at(context.time_remaining(), node_ids, waiting)

    def _standing(self, row: ObjectRow, looked: Looked | None = None) -> Standing | None:
        """Of a row's object: that of its node's session here, or with another dispatcher."""
        session = self._delivery.sessions.get(row.node_id)
        own = standing_in(session.epoch, session.policy, row.key) if session else None
        other = looked.standings.get((row.node_id, row.key)) if looked else None
        return newer(own, other) if other else own

    async def Redeliver(self, request: pb.RedeliverRequest, context: Context) -> pb.RedeliverResponse:
        """See dispatcher.proto."""
        node_id, key = _node_id(request.node_id), _stored_name("object_key", request.object_key)
        await self._check_known(node_id)
        count = await self._outbox.redeliver(node_id, key, self._clock.wall_ms())
        if key and not count:
            await self._check_object(node_id, key)
        self._delivery.reread(node_id)
        return pb.RedeliverResponse(redelivered=count)

    async def Purge(self, request: pb.PurgeRequest, context: Context) -> pb.PurgeResponse:
        """See dispatcher.proto."""
        node_id = _node_id(request.node_id)
        if bool(request.object_key) == request.all:
            raise InvalidRequest("object_key", "name an object, or set all to true")
        key = _stored_name("object_key", request.object_key)
        await self._check_known(node_id)
        count = await self._outbox.purge(node_id, key, self._clock.wall_ms())
        if key and not count:
            await self._check_object(node_id, key)
        self._delivery.reread(node_id)
        return pb.PurgeResponse(purged=count)

    async def ResyncNode(self, request: pb.ResyncNodeRequest, context: Context) -> pb.ResyncNodeResponse:
        """See dispatcher.proto."""
        node_id = _node_id(request.node_id)
        await self._check_known(node_id)
        count = await self._outbox.resync(node_id, self._clock.wall_ms())
        return pb.ResyncNodeResponse(objects=count)

    async def ListConnectorLinks(
        self, request: pb.ListConnectorLinksRequest, context: Context
    ) -> ListLinksResponse:
        """See dispatcher.proto."""
        return await self._connectors.links(request.connector, request.request, context.time_remaining())

    async def DrainConnector(self, request: pb.DrainConnectorRequest, context: Context) -> DrainResponse:
        """See dispatcher.proto."""
        return await self._connectors.drain(request.connector, request.request, context.time_remaining())

    async def GetResources(self, request: GetResourcesRequest, context: Context) -> DispatcherResources:
        """See resources.proto."""
        return dispatcher_resources(self._holders, collect_garbage=request.collect_garbage)

    async def _check_object(self, node_id: str, name: str) -> None:
        """Raises NotFound if the node has no object of that key or path."""
        if await self._outbox.find(node_id, "", name) is None:
            raise _unknown_object(node_id, "", name)

    async def _check_known(self, node_id: str) -> None:
        """Raises NotFound for a node that nothing is known of: its id is misspelt, as a rule."""
        if not await self._outbox.last_seqs([node_id]):
            raise unknown_node(node_id)

    def _node(self, summary: NodeSummary) -> pb.NodeDelivery:
        node = summary.node
        session = self._delivery.sessions.get(node.node_id)
        return pb.NodeDelivery(
            node_id=node.node_id,
            connected=session is not None and session.active,
            epoch=session.epoch if session else 0,
            pending=node.pending_rows,
            pending_bytes=node.pending_bytes,
            in_flight=session.policy.in_flight if session else 0,
            parked=summary.parked,
            oldest_pending=_timestamp(summary.oldest_pending_ms),
            last_ack=_timestamp(node.last_ack_ms),
            last_seq=node.last_seq,
            last_note=self._delivery.notices.last(node.node_id),
        )

    def _object(self, row: ObjectRow, looked: Looked | None = None) -> pb.ObjectDelivery:
        return pb.ObjectDelivery(
            object_key=row.key,
            resource=row.path,
            message_id=row.message_id,
            operation=row.operation,
            version="" if row.version is None else str(row.version),
            floor=str(row.floor),
            acknowledged_version="" if row.acknowledged is None else str(row.acknowledged),
            state=delivery_state(row, self._standing(row, looked)),
            seq=row.seq,
            unacknowledged_attempts=row.attempts,
            parked_reason=row.reason if row.state == 2 else "",
            accepted_at=_timestamp(row.accepted_at_ms),
            expires_at=_timestamp(row.expires_at_ms),
            deleted=row.deleted,
            acknowledged_at=_timestamp(row.changed_at_ms if is_acknowledged(row) else 0),
        )


def _size_of(element: pb.ObjectDelivery | pb.DeliveryEvent | pb.ObjectOnNode) -> int:
    return element.ByteSize() + 8  # what stands around it in a list


def _event(event: Event) -> pb.DeliveryEvent:
    return pb.DeliveryEvent(
        at=_timestamp(event.at_ms),
        kind=event_kind_name(event.kind),
        message_id=event.message_id,
        object_key=event.key,
        version="" if event.version is None else str(event.version),
        attempt=event.attempt,
        epoch=event.epoch,
        reason=event.reason,
        times=min(event.repeats + 1, _MOST_TIMES) if event.repeats else 0,
        last_at=_timestamp(event.last_at_ms),
    )

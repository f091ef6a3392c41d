"""Records as messages of `cloudhub/v1/sessions.proto`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from cloudhub.v1 import link_pb2, sessions_pb2
from services.sessions.instances import Instance
from services.sessions.lifecycle import EventKind, Reason, Session, State
from services.sessions.limits import Scope
from services.sessions.records import Directive, Event, Lease, OpenResult, TransferResult, Usage

# In the verdicts of one answer, which stays far below what gRPC carries.
MAX_EARLIER_EVENTS = 8192
Result = TypeVar("Result", OpenResult, TransferResult)


def timestamp(at_ms: int) -> Timestamp:
    """An instant of the wall clock."""
    return Timestamp(seconds=at_ms // 1000, nanos=at_ms % 1000 * 1_000_000)


def reason_message(reason: Reason | None) -> link_pb2.CloseReason.ValueType:
    """A reason; unspecified for None."""
    return link_pb2.CLOSE_REASON_UNSPECIFIED if reason is None else link_pb2.CloseReason.ValueType(reason)


def session_message(session: Session) -> sessions_pb2.Session:
    """A session as operators and dispatchers see it."""
    message = sessions_pb2.Session(
        node_id=session.node_id,
        project_id=session.project_id,
        epoch=session.epoch,
        state=sessions_pb2.SessionState.ValueType(session.state),
        connector_id=session.connector_id,
        dispatcher_id=session.dispatcher_id,
        link=session.link,
        transport=session.transport,
        peer_address=session.peer_address,
        opened_at=timestamp(session.opened_at_ms),
    )
    if session.state is State.CLOSED:
        message.close_reason = reason_message(session.reason)
        if session.revoked and session.reason is Reason.EVICTED:
            message.close_reason = link_pb2.CLOSE_REASON_REVOKED
    if session.closed_at_ms is not None:
        message.closed_at.CopyFrom(timestamp(session.closed_at_ms))
    return message


def event_message(event: Event) -> sessions_pb2.LifecycleEvent:
    """A lifecycle event."""
    return sessions_pb2.LifecycleEvent(
        event_id=event.event_id,
        node_id=event.node_id,
        epoch=event.epoch,
        kind="connected" if event.kind is EventKind.CONNECTED else "disconnected",
        at_ms=event.at_ms,
        reason=reason_message(event.reason),
    )


def directive_message(directive: Directive) -> sessions_pb2.EndDirective:
    """What a dispatcher is asked."""
    return sessions_pb2.EndDirective(
        node_id=directive.node_id,
        epoch=directive.epoch,
        reason=reason_message(directive.reason),
        revoked=directive.revoked,
    )


def peer_message(lease: Lease) -> sessions_pb2.DispatcherPeer:
    """A dispatcher, for the others."""
    return sessions_pb2.DispatcherPeer(
        dispatcher_id=lease.dispatcher_id, name=lease.name, address=lease.address
    )


def instance_message(instance: Instance) -> sessions_pb2.Instance:
    """A process, for operators."""
    return sessions_pb2.Instance(
        service=instance.service,
        instance_id=instance.instance_id,
        name=instance.name,
        address=instance.address,
        nodes=instance.nodes,
        silent_seconds=round(instance.silent_seconds, 3),
        version=instance.version,
        draining=instance.draining,
    )


def refusal_detail(result: OpenResult) -> str:
    """Which limit left no room, for the operator and the edge."""
    assert result.full
    scope, key = result.full
    where = {Scope.CONNECTOR: f"connector {key}", Scope.PROJECT: f"project {key}", Scope.TOTAL: "the cluster"}
    return f"{where[scope]} has its limit of {result.limit} nodes"


def within(results: Sequence[Result], max_events: int = MAX_EARLIER_EVENTS) -> Iterator[Result]:
    """The results with no more earlier events than an answer has room for. The others are the caller's too,
    which gets them with a renewal of its lease as it gets all that stay unacknowledged."""
    left = max_events
    for result in results:
        kept = result.earlier_events[:left]
        left -= len(kept)
        yield result if len(kept) == len(result.earlier_events) else replace(result, earlier_events=kept)


def open_message(result: OpenResult, retry_seconds: float) -> sessions_pb2.OpenVerdict:
    """A verdict; a refusal by a limit advises when to try again."""
    if result.forbidden:
        return sessions_pb2.OpenVerdict(
            refusal=link_pb2.Refusal(reason=link_pb2.REFUSAL_REASON_FORBIDDEN, detail=result.forbidden)
        )
    if result.full:
        return sessions_pb2.OpenVerdict(
            refusal=link_pb2.Refusal(
                reason=link_pb2.REFUSAL_REASON_NODE_LIMIT,
                detail=refusal_detail(result),
                retry_after_seconds=retry_seconds,
            )
        )
    return sessions_pb2.OpenVerdict(
        epoch=result.epoch,
        superseded=session_message(result.superseded) if result.superseded else None,
        superseded_event=event_message(result.superseded_event) if result.superseded_event else None,
        earlier_events=[event_message(event) for event in result.earlier_events],
    )


def transfer_message(result: TransferResult) -> sessions_pb2.TransferVerdict:
    """A verdict on a transfer."""
    return sessions_pb2.TransferVerdict(
        epoch=result.epoch,
        earlier_events=[event_message(event) for event in result.earlier_events],
        reason=reason_message(result.reason),
    )


def limits_message(usage: Usage) -> sessions_pb2.Limits:
    """The limits in force."""
    limits = usage.limits
    return sessions_pb2.Limits(
        per_connector=limits.per_connector,
        per_project=limits.per_project,
        total=limits.total,
        projects=limits.projects,
    )

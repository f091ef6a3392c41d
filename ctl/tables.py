"""What people see of the hub's answers. Pure: the present time is an argument."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from cloudhub.v1.connector_pb2 import Link
from cloudhub.v1.dispatcher_pb2 import (
    DeliveryEvent,
    DeliveryState,
    ExplainDeliveryResponse,
    NodeDelivery,
    ObjectDelivery,
    ObjectOnNode,
)
from cloudhub.v1.enrolment_pb2 import NodeCertificate, RevokedNode, Token
from cloudhub.v1.link_pb2 import CloseReason
from cloudhub.v1.sessions_pb2 import GetLimitsResponse, Instance, Session, SessionState

Row = Sequence[str]

NODES = ("NODE", "STATE", "PENDING", "IN FLIGHT", "PARKED", "OLDEST PENDING", "LAST ACK")
SESSIONS = ("NODE", "STATE", "SINCE", "CONNECTOR", "DISPATCHER", "PEER", "EPOCH")
LINKS = ("NODE", "LINK", "SINCE", "IDLE", "QUEUED", "RECEIVED", "SENT", "PEER", "EPOCH")
INSTANCES = ("SERVICE", "NAME", "STATE", "VERSION", "ADDRESS", "NODES", "HEARD OF", "ID")
OBJECTS = ("OBJECT", "RESOURCE", "OPERATION", "VERSION", "STATE", "ATTEMPTS", "ACCEPTED", "PARKED BECAUSE")
HELD = ("OBJECT", "RESOURCE", "HAS", "ACKNOWLEDGED", "WANTED", "STATE")
HOLDERS = ("NODE", "HAS", "ACKNOWLEDGED", "WANTED", "STATE", "OBJECT")
NOTES = ("NOTED", "TIMES", "WHAT")
EVENTS = ("TIME", "WHAT", "VERSION", "ATTEMPT", "EPOCH", "REASON")
LIMITS = ("SCOPE", "LIMIT", "NODES NOW")
CHANGES = ("TIME", "NODE", "STATE", "REASON", "EPOCH", "PEER")

TOKENS = ("TOKEN", "NODES", "PROJECT", "USES LEFT", "MADE", "GOOD")
REVOKED = ("NODE", "REVOKED", "SINCE THEN")
CERTIFICATES = ("NODE", "ISSUED", "GOOD", "BY", "PEER", "SERIAL")

_WITH_NODES = ("dispatcher", "connector")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def age(seconds: float) -> str:
    """`0.3 s`, `12 s`, `4 min`, `3 h`, `12 d`: the largest unit that fits twice, so that little is lost."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    if 0.05 <= seconds < 0.95:
        return f"{seconds:.1f} s"
    return f"{max(0.0, seconds):.0f} s"


def since(stamp: Timestamp, now: datetime) -> str:
    """The age of an instant; nothing if there is none."""
    if not stamp.seconds:
        return ""
    return f"{age((now - stamp.ToDatetime(UTC)).total_seconds())} ago"


def clock(stamp: Timestamp) -> str:
    """An instant, to the millisecond."""
    return f"{stamp.ToDatetime(UTC):%Y-%m-%dT%H:%M:%S}.{stamp.nanos // 1_000_000:03}Z"


def until(stamp: Timestamp, now: datetime) -> str:
    """`for 4 h`, or `expired`."""
    left = (stamp.ToDatetime(UTC) - now).total_seconds()
    return f"for {age(left)}" if left > 0 else "expired"


def token_rows(tokens: Iterable[Token], now: datetime) -> list[Row]:
    """Of TOKENS."""
    return [
        (
            token.token_id,
            token.node_pattern,
            token.project_id or "any",
            f"{token.uses_left} of {token.uses}",
            since(token.created_at, now),
            "revoked" if token.revoked else until(token.expires_at, now),
        )
        for token in tokens
    ]


def certificate_rows(certificates: Iterable[NodeCertificate], now: datetime) -> list[Row]:
    """Of CERTIFICATES."""
    return [
        (
            certificate.node_id,
            since(certificate.issued_at, now),
            "revoked" if certificate.revoked else until(certificate.not_after, now),
            "token" if certificate.token_id else "renewal",
            certificate.peer_address,
            certificate.serial,
        )
        for certificate in certificates
    ]


def revoked_rows(nodes: Iterable[RevokedNode], now: datetime) -> list[Row]:
    """Of REVOKED."""
    return [
        (
            node.node_id,
            since(node.revoked_at, now),
            "enrolled anew" if node.enrolled_since else "locked out",
        )
        for node in nodes
    ]


def session_state(session: Session) -> str:
    """`active`, `draining`, ..."""
    return SessionState.Name(session.state).removeprefix("SESSION_STATE_").lower()


def delivery_state(state: DeliveryState.ValueType) -> str:
    """`pending`, `in flight`, `parked`, ..."""
    return DeliveryState.Name(state).removeprefix("DELIVERY_STATE_").replace("_", " ").lower()


def close_reason(session: Session) -> str:
    """`evicted`, `edge closed`, ...; nothing while it lives."""
    if session.state != SessionState.SESSION_STATE_CLOSED:
        return ""
    return CloseReason.Name(session.close_reason).removeprefix("CLOSE_REASON_").replace("_", " ").lower()


def node_rows(nodes: Iterable[NodeDelivery], states: Mapping[str, str], now: datetime) -> list[Row]:
    """Of NODES; `states` are those of the nodes' live sessions."""
    return [
        (
            node.node_id,
            states.get(node.node_id, "away"),
            str(node.pending),
            str(node.in_flight),
            str(node.parked),
            since(node.oldest_pending, now),
            since(node.last_ack, now),
        )
        for node in nodes
    ]


def _told(noted: str) -> str:
    """What is noted of a node, its first word in words: `version too large: ...`."""
    word, colon, detail = noted.partition(":")
    return f"{word.replace('_', ' ')}{colon}{detail}"


def note_lines(nodes: Iterable[NodeDelivery], width: int | None) -> list[str]:
    """What was noted last of each node, in lines of at most `width` columns; None: in one each."""
    lines: list[str] = []
    for node in nodes:
        if node.last_note:
            line = f"{node.node_id}: {_told(node.last_note)}"
            lines += [line] if width is None else textwrap.wrap(line, width, subsequent_indent="  ")
    return lines


def note_rows(notes: Iterable[DeliveryEvent], now: datetime) -> list[Row]:
    """Of NOTES."""
    return [
        (
            since(note.last_at if note.HasField("last_at") else note.at, now),
            str(max(1, note.times)),
            _told(note.reason),
        )
        for note in notes
    ]


def session_rows(sessions: Iterable[Session], names: Mapping[str, str], now: datetime) -> list[Row]:
    """Of SESSIONS; `names` are those of the processes by their ids."""
    rows: list[Row] = []
    for session in sessions:
        state, reason = session_state(session), close_reason(session)
        stamp = session.closed_at if reason else session.opened_at
        rows.append(
            (
                session.node_id,
                f"{state} ({reason})" if reason else state,
                since(stamp, now),
                names.get(session.connector_id, session.connector_id),
                names.get(session.dispatcher_id, session.dispatcher_id),
                session.peer_address,
                str(session.epoch),
            )
        )
    return rows


def link_rows(links: Iterable[Link], now: datetime) -> list[Row]:
    """Of LINKS."""
    return [
        (
            link.node_id,
            str(link.link),
            since(link.opened_at, now),
            age(link.idle_seconds),
            f"{link.queued_frames} frames, {link.queued_bytes} B",
            str(link.frames_received),
            str(link.frames_sent),
            link.peer_address,
            str(link.epoch),
        )
        for link in links
    ]


def instance_rows(instances: Iterable[Instance]) -> list[Row]:
    """Of INSTANCES."""
    return [
        (
            one.service,
            one.name,
            "draining" if one.draining else "serving",
            one.version or "unknown",
            one.address,
            str(one.nodes) if one.service in _WITH_NODES else "",
            f"{age(one.silent_seconds)} ago",
            one.instance_id,
        )
        for one in instances
    ]


def object_rows(objects: Iterable[ObjectDelivery], now: datetime) -> list[Row]:
    """Of OBJECTS."""
    return [
        (
            one.object_key,
            one.resource,
            one.operation,
            one.version,
            delivery_state(one.state),
            str(one.unacknowledged_attempts),
            since(one.accepted_at, now),
            one.parked_reason,
        )
        for one in objects
    ]


def _held_state(one: ObjectDelivery) -> str:
    state = delivery_state(one.state)
    return f"{state} (deleted)" if one.deleted else state


def held_rows(objects: Iterable[ObjectDelivery], now: datetime) -> list[Row]:
    """Of HELD."""
    return [
        (
            one.object_key,
            one.resource,
            one.acknowledged_version or "nothing",
            since(one.acknowledged_at, now),
            one.version,
            _held_state(one),
        )
        for one in objects
    ]


def newest_version(nodes: Iterable[ObjectOnNode]) -> int | None:
    """The highest version that was accepted for an object, over all nodes; None if none has it."""
    return max((int(one.object.floor) for one in nodes if one.HasField("object")), default=None)


def has_version(one: ObjectOnNode, version: int) -> bool:
    """Whether the node has acknowledged that version."""
    return one.HasField("object") and one.object.acknowledged_version == str(version)


def holder_rows(nodes: Iterable[ObjectOnNode], now: datetime) -> list[Row]:
    """Of HOLDERS."""
    rows: list[Row] = []
    for node in nodes:
        one = node.object
        if not node.HasField("object"):
            rows.append((node.node_id, "nothing", "", "", "never published", ""))
            continue
        rows.append(
            (
                node.node_id,
                one.acknowledged_version or "nothing",
                since(one.acknowledged_at, now),
                one.version,
                _held_state(one),
                one.object_key,
            )
        )
    return rows


def _times(event: DeliveryEvent) -> str:
    """What happened, and how often in a row."""
    if event.times < 2:
        return event.kind
    return f"{event.kind} \N{MULTIPLICATION SIGN}{event.times} until {clock(event.last_at)}"


def event_rows(events: Iterable[DeliveryEvent]) -> list[Row]:
    """Of EVENTS."""
    return [
        (
            clock(event.at),
            _times(event),
            event.version,
            str(event.attempt or ""),
            str(event.epoch or ""),
            event.reason,
        )
        for event in events
    ]


def explanation_lines(answer: ExplainDeliveryResponse, now: datetime) -> list[str]:
    """Where a message is, before its events."""
    lines = [answer.explanation]
    facts = [("node", answer.node_id), ("message", answer.message_id)]
    if answer.HasField("object"):
        one = answer.object
        facts.append(("object", one.object_key))
        facts.append(("resource", one.resource))
        facts.append(("operation", one.operation))
        facts.append(("version", one.version or "none"))
        facts.append(("floor", one.floor))
        facts.append(("acknowledged", one.acknowledged_version or "none"))
        facts.append(("accepted", since(one.accepted_at, now)))
        if one.HasField("expires_at"):
            facts.append(("expires", clock(one.expires_at)))
    if answer.trace_id:
        facts.append(("trace", answer.trace_id))
    width = max(len(name) for name, _ in facts)
    return lines + [f"  {name:<{width}}  {value}" for name, value in facts]


def limit_rows(answer: GetLimitsResponse, names: Mapping[str, str]) -> list[Row]:
    """Of LIMITS; 0 is unlimited."""

    def told(limit: int) -> str:
        return str(limit) if limit else "unlimited"

    limits = answer.limits
    rows: list[Row] = [("all nodes", told(limits.total), str(answer.nodes))]
    rows.append(("each connector", told(limits.per_connector), ""))
    for connector, nodes in sorted(answer.nodes_by_connector.items()):
        rows.append((f"  {names.get(connector, connector)}", "", str(nodes)))
    rows.append(("each project", told(limits.per_project), ""))
    for project in sorted({*limits.projects, *answer.nodes_by_project}):
        own = limits.projects.get(project)
        nodes = answer.nodes_by_project.get(project, 0)
        rows.append((f"  {project}", "" if own is None else told(own), str(nodes)))
    return rows


def change_row(session: Session, now: datetime) -> Row:
    """Of CHANGES."""
    return (
        f"{now:%H:%M:%S}",
        session.node_id,
        session_state(session),
        close_reason(session),
        str(session.epoch),
        session.peer_address,
    )

"""Requests checked and turned into records; a fault names its field."""

from collections.abc import Callable, Sequence, Sized

from cloudhub.v1 import sessions_pb2
from services.runtime.errors import InvalidRequest
from services.runtime.names import (
    check_certificate_serial,
    check_instance_id,
    check_label,
    check_node_id,
    check_project_id,
    check_transport,
    check_version,
)
from services.sessions.lifecycle import LIVE, Reason, State
from services.sessions.limits import LimitsChange
from services.sessions.records import ConnectorLoad, Ending, Filter, Opening, Ref, Renewal, Transfer

MOST_ENTRIES = 4096
DEFAULT_HELD = 1000
# The largest integer that a row holds; requests carry 64 bits without a sign.
MOST_INTEGER = 2**63 - 1
MOST_TEXT_CHARS = 253
_PREFIX_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")


def _check(field: str, text: str, rule: Callable[[str], str | None]) -> str:
    complaint = rule(text)
    if complaint:
        raise InvalidRequest(field, complaint)
    return text


def _integer(field: str, value: int, least: int = 0) -> int:
    if not least <= value <= MOST_INTEGER:
        raise InvalidRequest(field, f"should be from {least} to {MOST_INTEGER}; got {value}")
    return value


def check_size(field: str, entries: Sized) -> None:
    """Bounds a batch."""
    if len(entries) > MOST_ENTRIES:
        raise InvalidRequest(field, f"should have at most {MOST_ENTRIES} entries; it has {len(entries)}")


def node_id(field: str, text: str) -> str:
    """A checked node id."""
    return _check(field, text, check_node_id)


def dispatcher_id(text: str) -> str:
    """A checked `dispatcher_id`."""
    return _check("dispatcher_id", text, check_instance_id)


def openings(request: sessions_pb2.OpenSessionsRequest) -> list[Opening]:
    """The entries of OpenSessions."""
    check_size("sessions", request.sessions)
    found = []
    for index, entry in enumerate(request.sessions):
        at = f"sessions[{index}]."
        found.append(
            Opening(
                node_id=node_id(at + "node_id", entry.node_id),
                project_id=_check(at + "project_id", entry.project_id, check_project_id),
                connector_id=_check(at + "connector_id", entry.connector_id, check_instance_id),
                link=_integer(at + "link", entry.link),
                transport=_check(at + "transport", entry.transport, check_transport),
                peer_address=_check(at + "peer_address", entry.peer_address, check_label),
                traceparent=entry.traceparent,
                certificate_serial=_check(
                    at + "certificate_serial", entry.certificate_serial, check_certificate_serial
                ),
            )
        )
    return found


def refs(entries: Sequence[sessions_pb2.SessionRef]) -> list[Ref]:
    """The entries of ActivateSessions."""
    check_size("sessions", entries)
    return [
        Ref(
            node_id(f"sessions[{index}].node_id", entry.node_id),
            _integer(f"sessions[{index}].epoch", entry.epoch, 1),
        )
        for index, entry in enumerate(entries)
    ]


def transfers(request: sessions_pb2.TransferSessionsRequest) -> list[Transfer]:
    """The entries of TransferSessions."""
    check_size("sessions", request.sessions)
    found = []
    for index, entry in enumerate(request.sessions):
        at = f"sessions[{index}]."
        found.append(
            Transfer(
                node_id=node_id(at + "node_id", entry.node_id),
                epoch=_integer(at + "epoch", entry.epoch, 1),
                connector_id=_check(at + "connector_id", entry.connector_id, check_instance_id),
                link=_integer(at + "link", entry.link),
            )
        )
    return found


def endings(request: sessions_pb2.CloseSessionsRequest) -> list[Ending]:
    """The entries of CloseSessions."""
    check_size("sessions", request.sessions)
    found = []
    for index, entry in enumerate(request.sessions):
        at = f"sessions[{index}]."
        try:
            reason = Reason(entry.reason)
        except ValueError:
            raise InvalidRequest(
                at + "reason", f"should be a CloseReason from 1 to {max(Reason)}; got {entry.reason}"
            ) from None
        found.append(
            Ending(node_id(at + "node_id", entry.node_id), _integer(at + "epoch", entry.epoch, 1), reason)
        )
    return found


def renewal(request: sessions_pb2.RenewLeaseRequest) -> Renewal:
    """A RenewLease."""
    check_size("connectors", request.connectors)
    connectors = tuple(
        ConnectorLoad(
            _check(f"connectors[{index}].connector_id", load.connector_id, check_instance_id),
            _check(f"connectors[{index}].name", load.name, check_label),
            load.links,
            _check(f"connectors[{index}].address", load.address, check_label),
            _check(f"connectors[{index}].version", load.version, check_version),
            load.draining,
        )
        for index, load in enumerate(request.connectors)
    )
    return Renewal(
        dispatcher_id=dispatcher_id(request.dispatcher_id),
        name=_check("name", request.name, check_label),
        address=_check("address", request.address, check_label),
        counter=_integer("counter", request.counter, 1),
        sessions=min(request.sessions, 2**31 - 1),
        connectors=connectors,
        version=_check("version", request.version, check_version),
        draining=request.draining,
    )


def node_ids(request: sessions_pb2.LocateNodesRequest | sessions_pb2.DeleteNodesRequest) -> list[str]:
    """The nodes of LocateNodes and DeleteNodes."""
    check_size("node_ids", request.node_ids)
    return [node_id(f"node_ids[{index}]", text) for index, text in enumerate(request.node_ids)]


def held_page(request: sessions_pb2.ListHeldRequest) -> tuple[str, str, int]:
    """ListHeld: the dispatcher, the node after which the page begins, and its size."""
    after = request.after_node_id
    if after:
        node_id("after_node_id", after)
    size = request.page_size or DEFAULT_HELD
    if size > MOST_ENTRIES:
        raise InvalidRequest("page_size", f"should be at most {MOST_ENTRIES}; got {size}")
    return dispatcher_id(request.dispatcher_id), after, size


def event_ids(request: sessions_pb2.AcknowledgeEventsRequest) -> list[str]:
    """The events of AcknowledgeEvents."""
    check_size("event_ids", request.event_ids)
    for index, text in enumerate(request.event_ids):
        if not 1 <= len(text) <= 36 or not text.isprintable():
            raise InvalidRequest(
                f"event_ids[{index}]", f"should be an event id as it was handed out; got {text[:80]!r}"
            )
    return list(request.event_ids)


def prefix(text: str) -> str:
    """A checked `node_id_prefix`."""
    if len(text) > MOST_TEXT_CHARS or not _PREFIX_CHARS.issuperset(text):
        raise InvalidRequest("node_id_prefix", f"should be the beginning of a node id; got {text[:80]!r}")
    return text


def session_filter(request: sessions_pb2.ListSessionsRequest) -> Filter:
    """What ListSessions asks for."""
    check_size("states", request.states)
    try:
        states = frozenset(State(state) for state in request.states)
    except ValueError:
        raise InvalidRequest(
            "states", f"should be SessionStates from 1 to {max(State)}; got {list(request.states)[:16]}"
        ) from None
    optional = {
        "project_id": (request.project_id, check_project_id),
        "connector_id": (request.connector_id, check_instance_id),
        "dispatcher_id": (request.dispatcher_id, check_instance_id),
    }
    for field, (text, rule) in optional.items():
        if text:
            _check(field, text, rule)
    return Filter(
        node_id_prefix=prefix(request.node_id_prefix),
        project_id=request.project_id,
        connector_id=request.connector_id,
        dispatcher_id=request.dispatcher_id,
        states=states or LIVE,
    )


def limits_change(request: sessions_pb2.SetLimitsRequest) -> LimitsChange:
    """A SetLimits."""
    check_size("projects", request.projects)

    def given(field: str) -> int | None:
        return _integer(field, getattr(request, field)) if request.HasField(field) else None  # type: ignore[arg-type]

    return LimitsChange(
        per_connector=given("per_connector"),
        per_project=given("per_project"),
        total=given("total"),
        projects={
            _check(f"projects[{key[:80]!r}]", key, check_project_id): _integer(f"projects[{key!r}]", limit)
            for key, limit in request.projects.items()
        },
    )

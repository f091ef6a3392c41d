"""Rows of the registry's tables as records and back."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Row

from services.runtime.errors import RowDamaged, StoreUnavailable
from services.sessions.fencing import Epoch
from services.sessions.lifecycle import EventKind, Reason, Session, State
from services.sessions.records import ConnectorLoad, Directive, Event, Lease

R = TypeVar("R")


def _checked(read: Callable[[Row[Any]], R]) -> Callable[[Row[Any]], R]:
    """Says which node's row holds what no version of this service writes."""

    def reader(row: Row[Any]) -> R:
        try:
            return read(row)
        except (ValueError, TypeError) as error:
            raise RowDamaged(row.node_id, str(error)) from error

    return reader


def _reason(value: int | None) -> Reason | None:
    return None if value is None else Reason(value)


@_checked
def session_of(row: Row[Any]) -> Session:
    """A row of `node_session`."""
    return Session(
        node_id=row.node_id,
        project_id=row.project_id,
        epoch=Epoch(int(row.epoch)),
        state=State(row.state),
        reason=_reason(row.reason),
        announced=bool(row.announced),
        connector_id=row.connector_id,
        dispatcher_id=row.dispatcher_id,
        link=row.link,
        transport=row.transport,
        peer_address=row.peer_address,
        opened_at_ms=int(row.opened_at_ms),
        closed_at_ms=row.closed_at_ms,
        revoked=bool(row.revoked),
    )


def session_values(session: Session) -> dict[str, object]:
    """The columns of `node_session`."""
    return {
        "node_id": session.node_id,
        "project_id": session.project_id,
        "epoch": session.epoch,
        "state": int(session.state),
        "reason": None if session.reason is None else int(session.reason),
        "announced": session.announced,
        "connector_id": session.connector_id,
        "dispatcher_id": session.dispatcher_id,
        "link": session.link,
        "transport": session.transport,
        "peer_address": session.peer_address,
        "opened_at_ms": session.opened_at_ms,
        "closed_at_ms": session.closed_at_ms,
        "revoked": session.revoked,
    }


@_checked
def event_of(row: Row[Any]) -> Event:
    """A row of `lifecycle_event`."""
    return Event(
        node_id=row.node_id,
        epoch=Epoch(int(row.epoch)),
        kind=EventKind(row.kind),
        event_id=row.event_id,
        at_ms=int(row.at_ms),
        reason=_reason(row.reason),
        dispatcher_id=row.dispatcher_id,
        handed=int(row.handed),
    )


def event_values(event: Event) -> dict[str, object]:
    """The columns of `lifecycle_event`."""
    return {
        "node_id": event.node_id,
        "epoch": event.epoch,
        "kind": int(event.kind),
        "event_id": event.event_id,
        "at_ms": event.at_ms,
        "reason": None if event.reason is None else int(event.reason),
        "dispatcher_id": event.dispatcher_id,
        "handed": event.handed,
    }


@_checked
def directive_of(row: Row[Any]) -> Directive:
    """A row of `end_directive`."""
    return Directive(
        node_id=row.node_id,
        epoch=Epoch(int(row.epoch)),
        dispatcher_id=row.dispatcher_id,
        reason=Reason(row.reason),
        at_ms=int(row.at_ms),
        revoked=bool(getattr(row, "revoked", False)),
    )


def directive_values(directive: Directive) -> dict[str, object]:
    """The columns of `end_directive`."""
    return {
        "node_id": directive.node_id,
        "epoch": directive.epoch,
        "dispatcher_id": directive.dispatcher_id,
        "reason": int(directive.reason),
        "at_ms": directive.at_ms,
    }


_connectors = msgspec.json.Decoder(tuple[ConnectorLoad, ...])


def lease_of(row: Row[Any]) -> Lease:
    """A row of `dispatcher_lease`."""
    try:
        connectors = _connectors.decode(row.connectors)
    except msgspec.DecodeError as error:
        raise StoreUnavailable(f"the lease of {row.dispatcher_id!r} is damaged: {error}") from error
    return Lease(
        dispatcher_id=row.dispatcher_id,
        renewals=int(row.renewals),
        lost=bool(row.lost),
        name=row.name,
        address=row.address,
        sessions=row.sessions,
        connectors=connectors,
        version=row.version,
        draining=bool(row.draining),
    )


def connectors_text(connectors: tuple[ConnectorLoad, ...]) -> str:
    """The column `connectors` of `dispatcher_lease`."""
    return msgspec.json.encode(connectors).decode()

"""The contract of a session registry: who is connected where, under which epoch, within which limits."""

from collections.abc import Sequence
from typing import Protocol

from services.sessions.leases import Observation
from services.sessions.lifecycle import Session, State
from services.sessions.limits import LimitsChange, Place
from services.sessions.records import (
    ActivateResult,
    Changed,
    CloseResult,
    Committed,
    Deletion,
    Directive,
    Ending,
    Event,
    EvictResult,
    Filter,
    Lease,
    Opening,
    OpenResult,
    Ref,
    Renewal,
    Replica,
    Transfer,
    TransferResult,
    Trimmed,
    Usage,
)

# An event that its dispatcher got and nobody acknowledged within so many renewals is handed to it again:
# the answer that carried it may have been lost.
HAND_AGAIN_AFTER_RENEWALS = 20


class Registry(Protocol):
    """Each call is one durable transaction and raises StoreUnavailable if it cannot be; results stand in
    the order of the entries. `now_ms` is wall clock, for rows; nothing is decided by comparing it."""

    async def open(
        self, dispatcher_id: str, entries: Sequence[Opening], now_ms: int
    ) -> Committed[OpenResult]: ...

    async def activate(
        self, dispatcher_id: str, refs: Sequence[Ref], now_ms: int
    ) -> Committed[ActivateResult]: ...

    async def close(
        self, dispatcher_id: str, endings: Sequence[Ending], now_ms: int
    ) -> Committed[CloseResult]: ...

    async def transfer(
        self, dispatcher_id: str, wanted: Sequence[Transfer], now_ms: int
    ) -> Committed[TransferResult]: ...

    async def evict(
        self, node_id: str, epoch: int, now_ms: int, *, revoked: bool = False
    ) -> Committed[EvictResult]:
        """See `Book.evict`."""
        ...

    async def delete_nodes(self, node_ids: Sequence[str], now_ms: int) -> Committed[Deletion]:
        """Ends the sessions of nodes and forgets the nodes; see `Book.delete`."""
        ...

    async def ended_with_node(self) -> list[Ref]:
        """Sessions that ended because their node was deleted, and whose rows are still there."""
        ...

    async def forget_deleted(self, refs: Sequence[Ref]) -> int:
        """Drops the rows of those among them that are still as `ended_with_node` says; how many."""
        ...

    async def locate(self, node_ids: Sequence[str]) -> list[Session]:
        """The live sessions among them."""
        ...

    async def get(self, node_id: str) -> Session | None:
        """The node's newest session."""
        ...

    async def held(self, dispatcher_id: str, after: str, most: int) -> list[Ref]:
        """The dispatcher's live sessions of nodes above `after`, in order of node id."""
        ...

    async def page(self, wanted: Filter, after: str, size: int) -> list[Session]:
        """In order of node id, those above `after`."""
        ...

    async def renew(self, renewal: Renewal, now_ms: int, most_events: int) -> Committed[Event]:
        """Takes back the dispatcher's orphans and hands it events, whole nodes at a time: about
        `most_events`, more only if one node alone has more. Nothing, if the counter did not grow."""
        ...

    async def release(self, dispatcher_id: str, now_ms: int) -> Committed[None]:
        """Ends a lease at once; sessions that are left become orphans."""
        ...

    async def leases(self) -> list[Lease]: ...

    async def lose(self, seen: Observation, now_ms: int) -> Committed[None]:
        """Orphans the sessions of a dispatcher whose lease is still as it was seen."""
        ...

    async def expire(self, seen: Observation, now_ms: int, most: int) -> Committed[None]:
        """Closes at most `most` orphans of a lost dispatcher whose lease is still as it was seen."""
        ...

    async def forget_lost(self) -> None:
        """Drops lost leases that nothing depends on any more."""
        ...

    async def draining(self) -> list[Ref]: ...

    async def close_unconfirmed(self, refs: Sequence[Ref], now_ms: int) -> Committed[None]:
        """Closes those among the sessions that are still asked to end."""
        ...

    async def directives(self, dispatcher_id: str, most: int) -> list[Directive]:
        """What the dispatcher has not confirmed, in order of node id."""
        ...

    async def acknowledge(self, event_ids: Sequence[str]) -> int:
        """Drops events; how many there were."""
        ...

    async def trim(self, oldest_ms: int, most_events: int) -> Trimmed:
        """Drops events and directives that are older or, of events, the oldest above that number."""
        ...

    async def last_change(self) -> int:
        """The number of the last change of a session; 0 before the first."""
        ...

    async def changes_after(self, number: int, node_id: str, most: int) -> list[Changed]:
        """Sessions as they are now, in the order of their last change (then of node id), those behind
        (`number`, `node_id`). A session that changed several times since stands at its last change.
        Nothing that is committed later comes before what was returned."""
        ...

    async def beat(self, replica: Replica) -> None:
        """A replica says that it lives; the registry counts."""
        ...

    async def replicas(self) -> list[Replica]:
        """All on record, in order of their ids."""
        ...

    async def drop_replica(self, seen: Replica) -> None:
        """Drops a replica whose beats are still as they were seen."""
        ...

    async def usage(self, after: Place | None = None, most: int = 0) -> Usage:
        """The limits, the nodes in all, and those at up to `most` connectors and projects behind `after`:
        connectors by id, then projects by id."""
        ...

    async def change_limits(self, change: LimitsChange) -> Usage: ...

    async def states(self) -> dict[State, int]:
        """How many nodes' newest sessions are in each state."""
        ...

    async def probe(self) -> None:
        """Returns if the database takes writes."""
        ...

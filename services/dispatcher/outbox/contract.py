"""What the dispatcher asks of its outbox; one contract suite runs against every implementation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from services.dispatcher.outbox.records import Event, NodeRow, ObjectRow, Op, Result, Withheld


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """A node's figures for operators."""

    node: NodeRow
    parked: int
    oldest_pending_ms: int  # 0: nothing is pending


@dataclass(frozen=True, slots=True)
class NodeFilter:
    """Which nodes to list; `older_than_ms` is the latest acceptance instant of the oldest pending message."""

    prefix: str = ""
    only_parked: bool = False
    older_than_ms: int = 0


class SweepPlace(NamedTuple):
    """The nodes after which a sweep goes on, None where it has been through them all."""

    events: str | None = ""
    tombstones: str | None = ""

    @property
    def is_through(self) -> bool:
        """Whether all nodes have been looked at."""
        return self.events is None and self.tombstones is None


class Swept(NamedTuple):
    """What one step of a sweep came to: how many rows went, and where the next one goes on."""

    rows: int
    place: SweepPlace


class Mended(NamedTuple):
    """One step of `Outbox.mend`: how many objects gave way, and after which node it goes on, None if these
    were all."""

    objects: int
    after: str | None


class Outbox(Protocol):
    """Durable deliveries. Every method raises StoreUnavailable when the database does not answer."""

    async def commit(self, ops: Sequence[Op]) -> list[Result | Exception]:
        """Applies all operations in one durable transaction, in order, one result each.

        When it returns, everything is on disk. An operation that the database itself refuses (bad
        data: StoreRefused), or whose rows somebody else keeps locked (StoreBusy), fails alone: its exception
        stands in its place.
        """
        ...

    async def bodies(
        self, wanted: Sequence[tuple[str, str, int]]
    ) -> dict[tuple[str, str, int], bytes | Withheld]:
        """Messages by (node, key, seq); those that have moved on are absent. At least one of them is loaded,
        further ones as far as memory should hold them at once."""
        ...

    async def last_seqs(self, node_ids: Sequence[str]) -> dict[str, int]:
        """The last seq of each node that has a row. It grows with whatever changes what is pending but
        does not come from the node's session or its time: a publish, an un-parking, a purge."""
        ...

    async def list_nodes(self, after: str, limit: int, only: NodeFilter) -> list[NodeSummary]:
        """Nodes with an id above `after`, in order of id."""
        ...

    async def summary(self, node_id: str) -> NodeSummary | None:
        """One node's figures; None if nothing is known of it."""
        ...

    async def pending(self, node_id: str, after_seq: int, limit: int) -> list[ObjectRow]:
        """A node's pending rows above `after_seq`, in order of seq, without bodies."""
        ...

    async def objects_of(self, node_id: str, after_key: str, limit: int) -> list[ObjectRow]:
        """A node's objects with a key above `after_key`, in order of key, without bodies or answers."""
        ...

    async def find(self, node_id: str, message_id: str, name: str) -> ObjectRow | None:
        """The row of an object, named by its key, by its path (the last that had it), or by the id of a
        message it once had."""
        ...

    async def on_nodes(
        self, name: str, after: str, limit: int, prefix: str
    ) -> list[tuple[str, ObjectRow | None]]:
        """Nodes with an id above `after` that begins so, in order of id, each with its row of the object of
        that key or path, if it has one."""
        ...

    async def history(self, node_id: str, message_id: str, key: str, limit: int) -> list[Event]:
        """Events of a message, or of an object if `message_id` is empty: the newest, oldest first."""
        ...

    async def notes(self, node_id: str, limit: int) -> list[Event]:
        """What is noted of a node itself: the newest, oldest first."""
        ...

    async def redeliver(self, node_id: str, key: str, at_ms: int) -> int:
        """Un-parks the message of one object, named by its key or path, or with an empty key all of the node;
        how many."""
        ...

    async def purge(self, node_id: str, key: str, at_ms: int) -> int:
        """Ends the pending message of one object, named by its key or path, or with an empty key all of the
        node; how many."""
        ...

    async def resync(self, node_id: str, at_ms: int) -> int:
        """Forgets what the node acknowledged; how many objects."""
        ...

    async def expire(
        self, at_ms: int, limit: int, *, stepped_at_ms: int = 0, former_at_ms: int = 0
    ) -> list[ObjectRow]:
        """Ends up to `limit` messages whose time is over; the rows that ended. For messages accepted before
        `stepped_at_ms`, a step of the clock, it is `former_at_ms` now."""
        ...

    async def forget_unknown(self, before_ms: int, limit: int) -> int:
        """Deletes up to `limit` nodes that never connected, for which nothing is pending and nothing has
        happened since; how many."""
        ...

    async def sweep(
        self, events_before_ms: int, tombstones_before_ms: int, limit: int, place: SweepPlace
    ) -> Swept:
        """Deletes up to `limit` old events and as many old tombstones of the next nodes after `place`."""
        ...

    async def mend(self, after: str, at_ms: int) -> Mended:
        """Looks through the next nodes for what other releases left: several live objects under one path, of
        which the newest stays, and a wrong number of objects."""
        ...

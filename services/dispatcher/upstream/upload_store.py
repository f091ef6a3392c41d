"""The uploads of one dispatcher in its database."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, Table

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.shares import Amount
from services.dispatcher.upstream.upload_window import Load
from services.dispatcher.upstream.uploads import (
    LoadedUploads,
    LoadWanted,
    TakenOver,
    UploadRow,
    count_elsewhere,
    count_held,
    count_nodes,
    delete_uploads,
    load_uploads,
    nodes_of,
    oldest_n,
    other_holders,
    release,
    store_uploads,
    stored_ids,
    take_over,
)
from services.runtime.errors import StoreRefused
from services.runtime.store import Store

NODES_PER_TAKE_OVER = 64


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction: `gone` (node, place) are deleted, `rows` stored; whether `unfit` (node, message id)
    are stored is looked up. Of the nodes `come` what others hold is taken over."""

    rows: Sequence[UploadRow] = ()
    gone: Sequence[tuple[str, int]] = ()
    unfit: Sequence[tuple[str, str]] = ()
    come: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """What came of it: the (node, place) now stored, those that the database will never take, with why, all
    others repeat what was; which `unfit` are stored."""

    stored: set[tuple[str, int]] = field(default_factory=set)
    refused: dict[tuple[str, int], str] = field(default_factory=dict)
    repeated: set[tuple[str, str]] = field(default_factory=set)
    taken: Sequence[TakenOver] = ()


@dataclass(frozen=True, slots=True)
class Counted:
    """What is in the store: this holder's by node, all others' together, and the oldest of this holder's (0:
    it has none)."""

    own: dict[str, Amount]
    elsewhere: Amount
    oldest_n: int


def _repeats(rows: Sequence[UploadRow], stored: Set[tuple[str, int]]) -> set[str]:
    """Nodes of rows whose message was stored before, maybe elsewhere."""
    return {row.node_id for row in rows if (row.node_id, row.place) not in stored}


class UploadStore:
    """The table as `holder` uses it. Every method raises StoreUnavailable.

    With `is_shared` other dispatchers store in it as well.
    """

    def __init__(self, store: Store, table: Table, holder: str, *, is_shared: bool) -> None:
        self.is_shared = is_shared
        self._store = store
        self._table = table
        self._holder = holder

    def row(self, node_id: str, n: int, epoch: int, size_bytes: int, message: Message) -> UploadRow:
        """One to be stored, this holder's."""
        return UploadRow(node_id, n, epoch, size_bytes, message, self._holder)

    async def open(self) -> Sequence[TakenOver]:
        """What there is at the start: an own database has rows of earlier processes only; of a shared one
        this process has none yet."""
        table, holder = self._table, self._holder
        return await self._store.write(
            lambda connection: [] if self.is_shared else take_over(connection, table, holder)
        )

    async def change(self, change: Change) -> Changed:
        """One transaction; some more if the database refuses one of the rows, so that the others are stored.
        May be repeated after StoreUnavailable."""
        try:
            return await self._change(change)
        except StoreRefused:
            if not change.rows:
                raise
        # What is taken over is so last of all: after an error the same is found again.
        stored: set[tuple[str, int]] = set()
        refused: dict[tuple[str, int], str] = {}
        # By node, so that the rows around a refused one are mostly its own node's.
        await self._store_parts(
            sorted(change.rows, key=lambda row: (row.node_id, row.place)), stored, refused
        )
        rows = [row for row in change.rows if (row.node_id, row.place) not in refused]
        rest = await self._change(replace(change, rows=[]), _repeats(rows, stored))
        return replace(rest, stored=stored, refused=refused)

    async def _store_parts(
        self, rows: Sequence[UploadRow], stored: set[tuple[str, int]], refused: dict[tuple[str, int], str]
    ) -> None:
        try:
            stored |= await self._store.write(lambda connection: store_uploads(connection, self._table, rows))
        except StoreRefused as error:
            if len(rows) == 1:
                refused[rows[0].node_id, rows[0].place] = error.detail
                return
            half = len(rows) // 2
            await self._store_parts(rows[:half], stored, refused)
            await self._store_parts(rows[half:], stored, refused)

    async def _change(self, change: Change, repeating: Set[str] = frozenset()) -> Changed:
        """One transaction; nodes that are `repeating` sent what was stored before."""

        def work(connection: Connection) -> Changed:
            table = self._table
            delete_uploads(connection, table, change.gone)
            stored = store_uploads(connection, table, change.rows)
            repeated = stored_ids(connection, table, change.unfit)
            # After the inserts, which wait for those of a dispatcher that had the node before and is slow to
            # commit: what it stored first is the new owner's to hand on, before what came later.
            again = _repeats(change.rows, stored)
            taken: list[TakenOver] = []
            if self.is_shared and (nodes := sorted({*change.come, *again, *repeating})):
                taken = take_over(connection, table, self._holder, nodes=nodes)
            return Changed(stored, {}, repeated, taken)

        return await self._store.write(work)

    async def load(self, loads: Sequence[Load]) -> list[LoadedUploads]:
        """What the disk has for each."""

        def work(connection: Connection) -> list[LoadedUploads]:
            wanted = (LoadWanted(load.node_id, load.after, load.limit, load.most_bytes) for load in loads)
            return [load_uploads(connection, self._table, self._holder, one) for one in wanted]

        return await self._store.read(work)

    async def of_nodes(self, nodes: Sequence[str]) -> dict[str, Amount]:
        """What these nodes have in the store, whoever holds it."""
        return await self._store.read(lambda connection: count_nodes(connection, self._table, nodes))

    async def count(self) -> Counted:
        """What there is now."""

        def work(connection: Connection) -> Counted:
            table, holder = self._table, self._holder
            return Counted(
                count_held(connection, table, holder),
                count_elsewhere(connection, table, holder),
                oldest_n(connection, table, holder),
            )

        return await self._store.read(work)

    async def other_holders(self) -> list[str]:
        """Dispatchers that hold rows of the table, this one aside."""
        return await self._store.read(lambda connection: other_holders(connection, self._table, self._holder))

    async def inherit_some(self, former: str) -> Sequence[TakenOver]:
        """Takes over some of the nodes whose rows a holder that is gone has left; empty when none is."""
        table, holder = self._table, self._holder
        nodes = await self._store.read(
            lambda connection: nodes_of(connection, table, former, NODES_PER_TAKE_OVER)
        )
        if not nodes:
            return []
        return await self._store.write(
            lambda connection: take_over(connection, table, holder, nodes=nodes, former=former)
        )

    async def release(self) -> None:
        """This holder stops: others may have its rows at once."""
        if self.is_shared:
            await self._store.write(lambda connection: release(connection, self._table, self._holder))

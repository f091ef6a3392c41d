"""An outbox in memory, and builders; the fake passes the contract suite of the real one."""

from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy

from msgspec.structs import replace

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.outbox.contract import Mended, NodeFilter, NodeSummary, SweepPlace, Swept
from services.dispatcher.outbox.event_ids import EventIds, first_id_of
from services.dispatcher.outbox.ledger import Change, Ledger
from services.dispatcher.outbox.needs import needs_of
from services.dispatcher.outbox.quotas import Quotas, Totals, most_history_rows
from services.dispatcher.outbox.records import (
    Accept,
    Accepted,
    Cuts,
    Event,
    EventKind,
    ForgetNode,
    NodeRow,
    ObjectRow,
    Op,
    Result,
    RowState,
    Settle,
    Withheld,
    unfolded,
)
from services.dispatcher.outbox.repetitions import OpenLines, Transaction
from services.dispatcher.publication import Publication
from services.runtime.errors import StoreRefused, StoreUnavailable

NODE = "edge-1"
PATH = "default/configmap/a"
NOW_MS = 1_700_000_000_000


def publication(
    version: int | None = 1,
    *,
    key: str = "",
    uid: str = "",
    path: str = "",
    message_id: str = "",
    is_delete: bool = False,
    is_answer: bool = False,
    acknowledged: bool = True,
    force: bool = False,
    size_bytes: int = 100,
    priority: int = 0,
    expires_at_ms: int = 0,
    traceparent: str = "",
    content: bytes = b'{"n":1}',
) -> Publication:
    """A checked message: of the object `uid`, else of its path; `path` empty: one of the uid's own, or PATH;
    `message_id` empty: the hub's own choice."""
    path = path or (f"default/configmap/{uid}" if uid else PATH)
    chosen = message_id or f"hub-{uid or path}-{version}-{'delete' if is_delete else 'update'}"
    operation = "delete" if is_delete else "response" if is_answer else "update"
    message = Message(
        id=chosen,
        resource=path,
        operation=operation,
        resource_version="" if version is None else str(version),
        content=content,
    )
    return Publication(
        message=message,
        body=message.SerializeToString(),
        acknowledged=acknowledged,
        key=key or (f"answer:{chosen}" if is_answer else uid or path),
        uid=uid,
        version=version,
        is_delete=is_delete,
        is_answer=is_answer,
        own_id=bool(message_id),
        priority=priority,
        expires_at_ms=expires_at_ms,
        force=force,
        size_bytes=size_bytes,
        traceparent=traceparent,
    )


def accept(what: Publication, node_id: str = NODE, at_ms: int = NOW_MS) -> Accept:
    """The operation that takes it."""
    return Accept(node_id, what, at_ms)


def settle(result: object, epoch: int, at_ms: int = NOW_MS) -> Settle:
    """The node's acknowledgement of a message just accepted."""
    assert isinstance(result, Accepted), result
    row = result.row
    return Settle(row.node_id, epoch, row.key, row.seq, row.version, row.message_id, at_ms)


class MemoryOutbox:
    """Implements `contract.Outbox` in dictionaries. `away` makes every call fail as an absent database
    does; an operation on one of `bad_keys` fails as a value that the database refuses."""

    def __init__(self, quotas: Quotas | None = None) -> None:
        self.quotas = quotas or Quotas()
        self.totals = Totals()
        self.nodes: dict[str, NodeRow] = {}
        self.objects: dict[str, dict[str, ObjectRow]] = {}
        self.cuts: dict[str, Cuts] = {}
        self.bodies_held: dict[tuple[str, str], bytes] = {}
        self.events: list[tuple[int, Event]] = []
        self.away = False
        self.bad_keys: set[str] = set()
        self.batches: list[list[Op]] = []
        self._event_ids = EventIds()
        self._lines = OpenLines()

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("the database is away")

    async def commit(self, ops: Sequence[Op]) -> list[Result | Exception]:
        """See `contract.Outbox.commit`."""
        self._check()
        self.batches.append(list(ops))
        if not any(self._is_bad(op) for op in ops):
            return list(self._commit(ops))
        results: list[Result | Exception] = []
        for op in ops:
            if self._is_bad(op):
                results.append(StoreRefused("the database refused the value"))
            else:
                results.extend(self._commit([op]))
        return results

    def _is_bad(self, op: Op) -> bool:
        key = op.publication.key if isinstance(op, Accept) else getattr(op, "key", "")
        return key in self.bad_keys

    def _commit(self, ops: Sequence[Op]) -> list[Result]:
        ledger = self._ledger()
        ledger.portion_rows = needs_of(list(ops)).portion_rows
        results = [ledger.apply(op) for op in ops]
        self._write(ledger)
        return results

    def _ledger(self) -> Ledger:
        used = {
            (event.node_id, event.message_id): (event.key, event.version)
            for _, event in self.events
            if event.kind == EventKind.ACCEPTED
        }
        return Ledger(
            self.quotas,
            copy(self.totals),
            {node_id: copy(row) for node_id, row in self.nodes.items()},
            {node: {key: copy(row) for key, row in rows.items()} for node, rows in self.objects.items()},
            used,
            cuts=dict(self.cuts),
        )

    def _write(self, ledger: Ledger) -> None:
        """Only what the ledger says has changed, as a database would have it."""
        self.totals = ledger.totals
        lines = self._lines.begin()
        written = lines.lay(ledger.events, self._event_ids)
        for node_id in ledger.wiped_nodes:
            lines.deleted(node_id)
        counts = Counter(line.event.node_id for line in written.new)
        over: list[tuple[int, str]] = []
        for node_id, count in counts.items():
            node = ledger.nodes[node_id]
            node.history_rows += count
            ledger.changed_nodes.add(node_id)
            excess = node.history_rows - most_history_rows(self.quotas, node)
            if excess > 0 and node_id not in ledger.wiped_nodes:
                over.append((excess, node_id))
        if over:  # one at a time, as the database's
            node_id = max(over)[1]
            node = ledger.nodes[node_id]
            most = most_history_rows(self.quotas, node)
            self._trim(node_id, most // 3, lines)
            counted = sum(event.node_id == node_id for _, event in self.events)
            node.history_rows = (counted if counted <= most else 2 * (most // 3)) + counts[node_id]
        for node_id in ledger.wiped_nodes:
            self.nodes.pop(node_id, None)
            for key in self.objects.pop(node_id, {}):
                self.bodies_held.pop((node_id, key), None)
            self.events = [item for item in self.events if item[1].node_id != node_id]
            self.cuts.pop(node_id, None)
        for node_id in ledger.changed_cuts:
            self.cuts[node_id] = ledger.cuts[node_id]
        for node_id in ledger.changed_nodes:
            self.nodes[node_id] = copy(ledger.nodes[node_id])
        for (node_id, key), change in ledger.changed_objects.items():
            row = copy(ledger.objects[node_id][key])
            if change != Change.MARKED and row.body is None:
                self.bodies_held.pop((node_id, key), None)
            elif change != Change.MARKED and row.body is not None:
                self.bodies_held[node_id, key] = row.body
            row.body = None
            self.objects.setdefault(node_id, {})[key] = row
        for node_id, key in ledger.removed_objects:
            self.objects.get(node_id, {}).pop(key, None)
            self.bodies_held.pop((node_id, key), None)
        changed = dict(written.changed)
        self.events = [(event_id, changed.get(event_id, event)) for event_id, event in self.events]
        self.events += written.new
        lines.confirm()

    def _trim(self, node_id: str, kept: int, lines: Transaction) -> None:
        """Of acceptances and of all else the newest ones stay."""
        pending = {(row.key, row.message_id) for row in self._pending(node_id)}
        room = {True: kept, False: kept}
        gone: list[int] = []
        for event_id, event in reversed(self.events):
            is_acceptance = event.kind == EventKind.ACCEPTED
            if event.node_id != node_id or (is_acceptance and (event.key, event.message_id) in pending):
                continue
            room[is_acceptance] -= 1
            if room[is_acceptance] < 0:
                gone.append(event_id)
            if not is_acceptance and room[False] == -1:
                lines.deleted(node_id, event_id)
        self.events = [item for item in self.events if item[0] not in gone]

    async def bodies(
        self, wanted: Sequence[tuple[str, str, int]]
    ) -> dict[tuple[str, str, int], bytes | Withheld]:
        """See `contract.Outbox.bodies`."""
        self._check()
        found: dict[tuple[str, str, int], bytes | Withheld] = {}
        for node_id, key, seq in wanted:
            row = self.objects.get(node_id, {}).get(key)
            body = self.bodies_held.get((node_id, key))
            if row is not None and row.seq == seq and body is not None:
                found[node_id, key, seq] = body
        return found

    def _pending(self, node_id: str) -> list[ObjectRow]:
        rows = self.objects.get(node_id, {}).values()
        return sorted((row for row in rows if row.state != RowState.SETTLED), key=lambda row: row.seq)

    def _summary(self, node: NodeRow) -> NodeSummary:
        pending = self._pending(node.node_id)
        parked = sum(row.state == RowState.PARKED for row in pending)
        return NodeSummary(copy(node), parked, min((row.accepted_at_ms for row in pending), default=0))

    async def last_seqs(self, node_ids: Sequence[str]) -> dict[str, int]:
        """See `contract.Outbox.last_seqs`."""
        self._check()
        return {node_id: self.nodes[node_id].last_seq for node_id in node_ids if node_id in self.nodes}

    async def list_nodes(self, after: str, limit: int, only: NodeFilter) -> list[NodeSummary]:
        """See `contract.Outbox.list_nodes`."""
        self._check()
        found: list[NodeSummary] = []
        for node_id in sorted(self.nodes):
            summary = self._summary(self.nodes[node_id])
            oldest = summary.oldest_pending_ms
            if (
                node_id > after
                and node_id.startswith(only.prefix)
                and (summary.parked or not only.only_parked)
                and (not only.older_than_ms or 0 < oldest < only.older_than_ms)
            ):
                found.append(summary)
        return found[:limit]

    async def summary(self, node_id: str) -> NodeSummary | None:
        """See `contract.Outbox.summary`."""
        self._check()
        node = self.nodes.get(node_id)
        return self._summary(node) if node else None

    async def pending(self, node_id: str, after_seq: int, limit: int) -> list[ObjectRow]:
        """See `contract.Outbox.pending`."""
        self._check()
        return [copy(row) for row in self._pending(node_id) if row.seq > after_seq][:limit]

    async def objects_of(self, node_id: str, after_key: str, limit: int) -> list[ObjectRow]:
        """See `contract.Outbox.objects_of`."""
        self._check()
        rows = self.objects.get(node_id, {}).items()
        return [copy(row) for key, row in sorted(rows) if key > after_key and not row.is_answer][:limit]

    async def on_nodes(
        self, name: str, after: str, limit: int, prefix: str
    ) -> list[tuple[str, ObjectRow | None]]:
        """See `contract.Outbox.on_nodes`."""
        self._check()
        ids = [one for one in sorted(self.nodes) if one > after and one.startswith(prefix)][:limit]
        return [(node_id, self._named(node_id, name)) for node_id in ids]

    def _named(self, node_id: str, name: str) -> ObjectRow | None:
        rows = self.objects.get(node_id, {}).values()
        named = [row for row in rows if name in (row.key, row.path) and not row.is_answer]
        return copy(max(named, key=lambda row: row.seq)) if named else None

    async def find(self, node_id: str, message_id: str, name: str) -> ObjectRow | None:
        """See `contract.Outbox.find`."""
        self._check()
        key = name
        if not key:
            for _, event in self.events:
                is_told = event.kind == EventKind.ACCEPTED or event.accepted_at_ms
                if (event.node_id, event.message_id) == (node_id, message_id) and is_told:
                    key = event.key
            for waiting in self._pending(node_id):
                if waiting.message_id == message_id:
                    key = waiting.key
        row = self.objects.get(node_id, {}).get(key)
        if row is None and name:
            return self._named(node_id, name)
        return copy(row) if row else None

    async def notes(self, node_id: str, limit: int) -> list[Event]:
        """See `contract.Outbox.notes`."""
        self._check()
        noted = [one for _, one in self.events if one.node_id == node_id and one.kind is EventKind.NOTED]
        return noted[-limit:]

    async def history(self, node_id: str, message_id: str, key: str, limit: int) -> list[Event]:
        """See `contract.Outbox.history`."""
        self._check()
        found = [
            event
            for _, event in self.events
            if event.node_id == node_id
            and (event.message_id == message_id if message_id else event.key == key)
        ]
        untold = [
            row
            for row in self._pending(node_id)
            if not row.own_id and (row.message_id == message_id if message_id else row.key == key)
        ]
        return unfolded(found, untold)[-limit:]

    async def redeliver(self, node_id: str, key: str, at_ms: int) -> int:
        """See `contract.Outbox.redeliver`."""

        def unpark(ledger: Ledger, row: ObjectRow) -> None:
            ledger.unpark(ledger.nodes[node_id], row, at_ms)

        return self._each(node_id, key, {RowState.PARKED}, unpark)

    async def purge(self, node_id: str, key: str, at_ms: int) -> int:
        """See `contract.Outbox.purge`."""
        return self._each(
            node_id,
            key,
            {RowState.PENDING, RowState.PARKED},
            lambda ledger, row: ledger.purge(row, at_ms),
        )

    def _each(
        self, node_id: str, key: str, states: set[RowState], change: Callable[[Ledger, ObjectRow], None]
    ) -> int:
        self._check()
        ledger = self._ledger()
        rows = [
            row
            for row in sorted(ledger.objects.get(node_id, {}).values(), key=lambda row: row.seq)
            if row.state in states
        ]
        named = [row for row in rows if row.key == key] or [row for row in rows if row.path == key]
        rows = named if key else rows
        for row in rows:
            change(ledger, row)
        self._write(ledger)
        return len(rows)

    async def resync(self, node_id: str, at_ms: int) -> int:
        """See `contract.Outbox.resync`."""
        self._check()
        rows = self.objects.get(node_id, {})
        marked = [row for row in rows.values() if row.acknowledged is not None and not row.deleted]
        for row in marked:
            rows[row.key] = replace(row, acknowledged=None, changed_at_ms=at_ms)
        return len(marked)

    async def forget_unknown(self, before_ms: int, limit: int) -> int:
        """See `contract.Outbox.forget_unknown`."""
        self._check()
        spent = [
            node_id
            for node_id, node in sorted(self.nodes.items())
            if not node.known
            and not node.pending_rows
            and all(row.changed_at_ms < before_ms for row in self.objects.get(node_id, {}).values())
        ][:limit]
        self._commit([ForgetNode(node_id, 0) for node_id in spent])
        return len(spent)

    async def expire(
        self, at_ms: int, limit: int, *, stepped_at_ms: int = 0, former_at_ms: int = 0
    ) -> list[ObjectRow]:
        """See `contract.Outbox.expire`."""
        self._check()
        ledger = self._ledger()
        due = [
            row
            for rows in ledger.objects.values()
            for row in rows.values()
            if row.state != RowState.SETTLED
            and row.expires_at_ms
            and row.expires_at_ms <= (at_ms if row.accepted_at_ms >= stepped_at_ms else former_at_ms)
        ]
        due = sorted(due, key=lambda row: row.expires_at_ms)[:limit]
        for row in due:
            ledger.end(row, "expired", at_ms)
        self._write(ledger)
        return due

    async def sweep(
        self, events_before_ms: int, tombstones_before_ms: int, limit: int, place: SweepPlace
    ) -> Swept:
        """See `contract.Outbox.sweep`."""
        self._check()
        still_pending = {
            (row.node_id, row.key, row.message_id)
            for rows in self.objects.values()
            for row in rows.values()
            if row.state != RowState.SETTLED
        }

        def is_old(event_id: int, event: Event) -> bool:
            is_kept = event.kind == EventKind.ACCEPTED and (
                (event.node_id, event.key, event.message_id) in still_pending
            )
            return event_id < first_id_of(events_before_ms) and not is_kept

        is_asked = place.events is not None
        old = [item for item in self.events if is_asked and is_old(*item)][:limit]
        self.events = [item for item in self.events if item not in old]
        self._lines.close_before(first_id_of(events_before_ms))
        tombstones = [
            (row.node_id, row.key)
            for rows in self.objects.values()
            for row in rows.values()
            if place.tombstones is not None
            and (row.deleted and row.state == RowState.SETTLED and row.changed_at_ms < tombstones_before_ms)
        ][:limit]
        for node_id, key in tombstones:
            del self.objects[node_id][key]
            self.nodes[node_id].objects -= 1
        events_after, tombstones_after = (
            after if len(rows) == limit else None
            for rows, after in ((old, place.events), (tombstones, place.tombstones))
        )
        return Swept(len(old) + len(tombstones), SweepPlace(events_after, tombstones_after))

    async def mend(self, after: str, at_ms: int) -> Mended:
        """See `contract.Outbox.mend`."""
        self._check()
        ledger = self._ledger()
        ended = 0
        for node_id, rows in ledger.objects.items():
            live = [row for row in rows.values() if not (row.deleted or row.is_answer) and row.path]
            for path in sorted({row.path for row in live}):
                at_path = [row for row in live if row.path == path]
                ended += ledger.unite(at_path, at_ms) if len(at_path) > 1 else 0
            ledger.nodes[node_id].objects = sum(not row.is_answer for row in rows.values())
            ledger.changed_nodes.add(node_id)
        self._write(ledger)
        return Mended(ended, None)

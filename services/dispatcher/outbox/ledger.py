"""Every rule of the outbox, applied to rows in memory. Pure; the order of operations is the order of effects.

A store loads the rows that a batch of operations names, calls `apply` for each operation, and
writes what `Ledger` marks as changed, all in one transaction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter

from services.dispatcher.deletions import Published
from services.dispatcher.outbox.judging import Verdict, id_fault, judge, path_fault, replaced_by
from services.dispatcher.outbox.needs import MOST_LOADED
from services.dispatcher.outbox.quotas import Quotas, Totals, is_on_record, quota_fault
from services.dispatcher.outbox.records import (
    NO_CUTS,
    Accept,
    Accepted,
    Attempt,
    Claim,
    CountCut,
    CountUnacknowledged,
    Cuts,
    Deleted,
    DeleteNode,
    Done,
    Duplicate,
    Event,
    EventKind,
    Fenced,
    ForgetNode,
    KeepCuts,
    Loaded,
    NodeRow,
    ObjectRow,
    Op,
    Park,
    Reload,
    Result,
    RowState,
    Settle,
    Stale,
    snapshot,
)
from services.dispatcher.publication import Publication, Rejection, complete

# Looked up once: a member of an enumeration costs a call each time it is named.
SETTLED, PENDING, PARKED = RowState
_ACCEPTED, _SENT, _ACKNOWLEDGED = EventKind.ACCEPTED, EventKind.SENT, EventKind.ACKNOWLEDGED
_DONE = Done()
_SEQ = attrgetter("seq")


class Change(IntEnum):
    """How much of a row has to be written; the larger includes the smaller."""

    MARKED = 0  # everything but key, path, uid and body
    CLEARED = 1  # the message is over: its marks, and the body goes
    ACCEPTED = 2  # all of it


def _by_path(rows: Iterable[ObjectRow]) -> dict[str, list[str]]:
    """Path -> keys of its live objects in order of seq, or if none is live of the one that was there last."""
    found: dict[str, list[ObjectRow]] = {}
    for row in rows:
        if row.is_answer or not row.path:
            continue
        there = found.setdefault(row.path, [row])
        last = there[-1]
        if last is row:
            continue
        if last.deleted and (not row.deleted or row.seq > last.seq):
            there[:] = [row]
        elif not row.deleted:
            there.append(row)
            there.sort(key=_SEQ)
    return {path: [row.key for row in there] for path, there in found.items()}


@dataclass(slots=True)
class Ledger:
    """Working copies of rows, and what became of them. `objects` must hold what `needs_of` named."""

    quotas: Quotas
    totals: Totals
    nodes: dict[str, NodeRow]
    objects: dict[str, dict[str, ObjectRow]]  # node -> key -> row
    # (node, message id) -> (key, version) of messages accepted before
    used_ids: dict[tuple[str, str], tuple[str, int | None]]
    # Nodes that nothing was known of and whose rows were made for this transaction.
    fresh_nodes: set[str] = field(default_factory=set)
    portion_rows: int = MOST_LOADED
    # Up to where a portion of a node's pending rows goes; a node that is not here has no more of them.
    read_through: dict[str, int] = field(default_factory=dict)
    # Of the nodes that are claimed and have any.
    cuts: dict[str, Cuts] = field(default_factory=dict)
    changed_cuts: set[str] = field(default_factory=set)
    # node -> path -> keys, as `_by_path` says; of nodes for which it was asked.
    paths: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    changed_nodes: set[str] = field(default_factory=set)
    # Those whose revision was raised; a store does it, once all operations are applied (`revise`).
    revised_nodes: set[str] = field(default_factory=set)
    changed_objects: dict[tuple[str, str], Change] = field(default_factory=dict)
    removed_objects: set[tuple[str, str]] = field(default_factory=set)
    # Nodes of which nothing that was stored stays; what the ledger holds of them came after.
    wiped_nodes: set[str] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    # Deletes that lacked something, by what is known of their objects: one body for all nodes alike.
    completed: dict[tuple[int, Published | None], Publication | Rejection] = field(default_factory=dict)
    # Refusals and drops that are in no history: nothing is known of their nodes.
    left_out: int = 0

    def apply(self, op: Op) -> Result:
        """Applies one operation to the rows and says what came of it."""
        if isinstance(op, Accept):
            return self._accept(op)
        if isinstance(op, Event):
            known_node = self.nodes.get(op.node_id)
            if known_node is not None and is_on_record(known_node):
                self.events.append(op)
            else:
                self.left_out += 1
            return _DONE
        node = self._node(op.node_id)
        if isinstance(op, Claim):
            return self._claim(op, node)
        if isinstance(op, Reload):
            return self._loaded(node, *self._portion(op.node_id, op.after_seq))
        if isinstance(op, (DeleteNode, ForgetNode)):
            return self._delete_node(op, node)
        if op.epoch != node.owner_epoch:
            return Fenced()
        if isinstance(op, Attempt):
            self._event(op.node_id, _SENT, op.at_ms, op.message_id, op.key, op.version, op.attempt, op.epoch)
            return _DONE
        if isinstance(op, KeepCuts):
            self.cuts[op.node_id] = op.cuts
            self.changed_cuts.add(op.node_id)
            return _DONE
        row = self._rows(op.node_id).get(op.key)
        if isinstance(op, Settle):
            self._settle(op, node, row)
        elif row is not None and row.seq == op.seq and row.state != SETTLED:
            if isinstance(op, CountUnacknowledged):
                row.attempts = op.attempts
                self._touch(row, op.at_ms)
                self._row_event(row, EventKind.UNACKNOWLEDGED, op.at_ms, op.epoch, attempt=op.attempts)
            elif isinstance(op, CountCut):
                unacknowledged = EventKind.UNACKNOWLEDGED
                self._row_event(row, unacknowledged, op.at_ms, op.epoch, op.reason, attempt=op.links)
            elif isinstance(op, Park):
                if op.refused:
                    self._row_event(row, EventKind.REFUSED, op.at_ms, op.epoch, op.reason)
                row.state, row.reason = PARKED, op.reason
                self._touch(row, op.at_ms)
                self._row_event(row, EventKind.PARKED, op.at_ms, op.epoch, op.reason)
            else:
                self._end(row, node, op.reason, op.at_ms, op.epoch)
        return _DONE

    def revise(self, first: int) -> None:
        """Raises the revision of every node of which something changed. Those that had none get `first`:
        never one that a node of the same id had before it was deleted."""
        for node_id, _ in (*self.changed_objects, *self.removed_objects):
            self.changed_nodes.add(node_id)
        self.revised_nodes = {node_id for node_id in self.changed_nodes if node_id in self.nodes}
        for node_id in self.revised_nodes:
            node = self.nodes[node_id]
            node.revision = node.revision + 1 if node.revision else first

    # -- accepting ---------------------------------------------------------------------------------

    def _accept(self, op: Accept) -> Result:
        publication = op.publication
        node = self._node(op.node_id)
        row = self._rows(op.node_id).get(publication.key)
        others: Sequence[ObjectRow] = ()
        if (row is None or row.deleted) and not publication.is_answer:  # else it is the only one of its path
            row, others = self._at_path(op.node_id, publication, row)
        used = self.used_ids.get((op.node_id, publication.message.id)) if publication.own_id else None
        verdict: Result | None = id_fault(used, publication, row) or path_fault(row, publication)
        if verdict is None and self.quotas.refuse_unknown_nodes and not node.known:
            verdict = Rejection("UNKNOWN_NODE", "node_ids", f"node {op.node_id} has never connected")
        if verdict is None:
            judged = judge(row, others[-1] if others else None, publication)
            if others and others[-1].deleted:
                others = ()
            if isinstance(judged, Stale):
                verdict = judged
            elif row is not None and judged is Verdict.REPEATED:
                verdict = self._duplicate(node, row, op.at_ms)
            else:
                whole = self._whole(publication, row, others) if publication.incomplete else publication
                if isinstance(whole, Publication):
                    publication = whole
                    verdict = quota_fault(self.quotas, self.totals, node, row, others, publication)
                else:
                    verdict = whole
        if verdict is not None:
            reason = "" if not isinstance(verdict, (Stale, Rejection)) else verdict.reason
            if reason and not is_on_record(node):
                self.left_out += 1
            elif reason:
                self._event(
                    op.node_id,
                    EventKind.REJECTED,
                    op.at_ms,
                    publication.message.id,
                    publication.key,
                    publication.version,
                    reason=reason,
                )
            return verdict
        return self._take(op, publication, node, row, others)

    def _at_path(
        self, node_id: str, publication: Publication, row: ObjectRow | None
    ) -> tuple[ObjectRow | None, Sequence[ObjectRow]]:
        """The row a publication is about whose object is not live, and what else is at its path: live objects
        in order of seq (one, unless a former release left more), or if none is live the last one. A delete
        without uid is about what is there, or was last, so that repeating it makes no second delete."""
        path = publication.message.resource
        if not path:
            return row, ()
        rows = self._rows(node_id)
        paths = self.paths.get(node_id)
        if paths is None:
            paths = self.paths[node_id] = _by_path(rows.values())
        keys = paths.get(path)
        if keys is None:
            return row, ()
        found = [rows[key] for key in keys]
        if publication.is_delete and not publication.uid:
            return found.pop(), found
        return row, () if found[-1] is row else found

    def _whole(
        self, publication: Publication, row: ObjectRow | None, others: Sequence[ObjectRow]
    ) -> Publication | Rejection:
        """A delete with what it lacks from what is known of its object, or of what is at its path."""
        known = row or (others[-1] if others else None)
        published = Published(known.type_meta, known.uid) if known else None
        where = (id(publication), published)  # the operations keep it alive
        found = self.completed.get(where)
        if found is None:
            found = self.completed[where] = complete(publication, published)
        return found

    def _duplicate(self, node: NodeRow, row: ObjectRow, at_ms: int) -> Duplicate:
        parked = row.state == PARKED
        if parked:
            self.unpark(node, row, at_ms)
        return Duplicate(row, parked)

    def unpark(self, node: NodeRow, row: ObjectRow, at_ms: int) -> None:
        """A parked message waits again at its old place: behind a later object of its path a delete
        would destroy that object. The node's order grows all the same, so that its owner notices."""
        node.last_seq += 1
        row.state, row.attempts, row.reason = PENDING, 0, ""
        self._touch(row, at_ms)
        self.changed_nodes.add(node.node_id)
        self._row_event(row, EventKind.REDELIVERED, at_ms, 0)

    def _take(
        self,
        op: Accept,
        publication: Publication,
        node: NodeRow,
        row: ObjectRow | None,
        others: Sequence[ObjectRow],
    ) -> Accepted:
        """Stores it; `others` are what is live at its path and gives way."""
        message = publication.message
        if row is None:
            row = ObjectRow(op.node_id, publication.key, message.resource, publication.uid)
            self._rows(op.node_id)[publication.key] = row
            node.objects += not publication.is_answer
        else:
            row = self._own(row)
        superseded_id, replaced = "", 0
        for other in others:
            replaced += other.state != SETTLED
            reason = replaced_by(publication.key, publication.version, publication.is_delete)
            self._give_way(other, node, reason, op.at_ms, "delete" if publication.is_delete else "")
        if row.state != SETTLED:
            superseded_id = row.message_id
            self._ended_event(row, op.at_ms, 0, "superseded")
            self._count(node, -1, -row.size_bytes)
        expires_at_ms = publication.expires_at_ms
        if not node.known:
            latest = op.at_ms + int(self.quotas.unknown_node_seconds * 1000)
            expires_at_ms = min(expires_at_ms or latest, latest)
            self.totals.unknown_nodes += not is_on_record(node)
        node.last_seq += 1
        version = publication.version
        if publication.is_delete:
            version = max(version or 0, row.floor)
            row.acknowledged = None
        if version is not None:
            row.floor = max(row.floor, version)
        row.deleted = publication.is_delete
        if not publication.is_delete:
            row.type_meta = publication.type_meta
        row.state = PENDING
        row.seq = node.last_seq
        row.message_id = message.id
        row.version = version
        row.operation = message.operation
        row.is_answer = publication.is_answer
        row.priority = publication.priority
        row.attempts = 0
        row.reason = ""
        row.accepted_at_ms = op.at_ms
        row.expires_at_ms = expires_at_ms
        row.size_bytes = publication.size_bytes
        row.traceparent = publication.traceparent
        row.own_id = publication.own_id
        row.body = publication.body
        self._count(node, 1, row.size_bytes)
        self._touch(row, op.at_ms, Change.ACCEPTED)
        if (paths := self.paths.get(op.node_id)) is not None and not row.is_answer:
            paths[row.path] = [row.key]
        self.used_ids[op.node_id, message.id] = (publication.key, publication.version)
        if publication.own_id:
            self._row_event(row, _ACCEPTED, op.at_ms, 0)
        return Accepted(row, superseded_id, replaced)

    def _give_way(self, row: ObjectRow, node: NodeRow, reason: str, at_ms: int, operation: str = "") -> None:
        """Another object takes the row's path, or a delete of it: an edge has room for one there."""
        if row.state != SETTLED:
            self._end(row, node, reason, at_ms, 0)
            row = self._rows(row.node_id)[row.key]  # ending may have copied it
        else:
            row = self._own(row)
            row.reason = reason
            self._row_event(row, EventKind.ENDED, at_ms, 0, reason)
        row.deleted = True
        row.operation = operation or row.operation
        self._touch(row, at_ms, Change.ACCEPTED)

    def unite(self, rows: Sequence[ObjectRow], at_ms: int) -> int:
        """Live objects of one path, as a release left them that had one per key there: the newest version
        stays, and is taken once more if the node has got another one since. How many gave way."""
        newest = max(rows, key=lambda row: (row.floor, row.seq))
        node = self._node(newest.node_id)
        for row in rows:
            if row is not newest:
                self._give_way(row, node, replaced_by(newest.key, newest.floor), at_ms)
        node.last_seq += 1  # its owner notices
        if any(row.seq > newest.seq for row in rows):
            newest.seq, newest.acknowledged = node.last_seq, None
            self._touch(newest, at_ms)
        self.changed_nodes.add(node.node_id)
        return len(rows) - 1

    # -- ending ------------------------------------------------------------------------------------

    def _settle(self, op: Settle, node: NodeRow, row: ObjectRow | None) -> None:
        node.last_ack_ms = op.at_ms
        self.changed_nodes.add(node.node_id)
        attempt, sent_at_ms = (op.sent.attempt, op.sent.at_ms) if op.sent else (0, 0)
        ends = row is not None and row.seq == op.seq and row.state != SETTLED
        self.events.append(
            Event(
                *(op.node_id, _ACKNOWLEDGED, op.at_ms, op.message_id, op.key, op.version),
                *(attempt, op.epoch, "", sent_at_ms),
                row.accepted_at_ms if row is not None and ends and not row.own_id else 0,
            )
        )
        if row is None:
            return
        if ends:
            self._count(node, -1, -row.size_bytes)
            row.acknowledged = max(row.acknowledged or 0, op.version or 0)
            self._clear(row, "acknowledged", op.at_ms)
        elif (
            op.version is not None and not row.deleted and (row.acknowledged or 0) <= op.version <= row.floor
        ):
            row.acknowledged = op.version
            self._touch(row, op.at_ms)

    def end(self, row: ObjectRow, reason: str, at_ms: int) -> None:
        """Ends a pending or parked message without an acknowledgement; its floor stays."""
        self._end(row, self._node(row.node_id), reason, at_ms, 0)

    def purge(self, row: ObjectRow, at_ms: int) -> None:
        """Ends it for an operator. The node's order grows, so that its owner notices."""
        node = self._node(row.node_id)
        node.last_seq += 1
        self._end(row, node, "purged", at_ms, 0)

    def _end(self, row: ObjectRow, node: NodeRow, reason: str, at_ms: int, epoch: int) -> None:
        self._count(node, -1, -row.size_bytes)
        self._ended_event(row, at_ms, epoch, reason)
        self._clear(row, reason, at_ms)

    def _clear(self, row: ObjectRow, reason: str, at_ms: int) -> None:
        row = self._own(row)
        row.state, row.reason, row.body, row.expires_at_ms = SETTLED, reason, None, 0
        if row.is_answer:
            self.removed_objects.add((row.node_id, row.key))
            self.changed_objects.pop((row.node_id, row.key), None)
            del self._rows(row.node_id)[row.key]
        else:
            self._touch(row, at_ms, Change.CLEARED)

    # -- owning ------------------------------------------------------------------------------------

    def _claim(self, op: Claim, node: NodeRow) -> Loaded:
        if op.after_seq:
            if op.epoch != node.owner_epoch:
                return Loaded(op.node_id, node.last_seq, fenced=True)
        elif op.epoch <= node.owner_epoch:
            return Loaded(op.node_id, node.last_seq, fenced=True)
        else:
            if not node.known and is_on_record(node):
                self.totals.became_known(node)
            node.owner_epoch, node.known = op.epoch, True
            self.changed_nodes.add(op.node_id)
        rows, through_seq = self._portion(op.node_id, op.after_seq)
        # Answers of this session came after its claim.
        of_former = 0 if op.same_session else op.last_seq or node.last_seq
        for row in rows:
            if row.is_answer and row.seq <= of_former:
                self._end(row, node, "its session ended", op.at_ms, op.epoch)
        kept = [row for row in rows if not row.is_answer or row.seq > of_former]
        cuts = NO_CUTS if op.after_seq else self.cuts.get(op.node_id, NO_CUTS)
        return self._loaded(node, kept, through_seq, cuts)

    @staticmethod
    def _loaded(
        node: NodeRow, rows: list[ObjectRow], through_seq: int | None, cuts: Cuts = NO_CUTS
    ) -> Loaded:
        """A snapshot: operations that follow in the same batch must not show in it."""
        return Loaded(
            node.node_id,
            node.last_seq,
            [snapshot(row) for row in rows],
            through_seq=through_seq,
            pending=node.pending_rows,
            cuts=cuts,
        )

    def _portion(self, node_id: str, after_seq: int) -> tuple[list[ObjectRow], int | None]:
        """The next pending rows above a seq, and how far that is; None: to the end."""
        bound = self.read_through.get(node_id)
        found = [
            row
            for row in self._rows(node_id).values()
            if row.state != SETTLED and row.seq > after_seq and (bound is None or row.seq <= bound)
        ]
        found.sort(key=lambda row: row.seq)
        if len(found) > self.portion_rows:
            found = found[: self.portion_rows]
            return found, found[-1].seq
        return found, None if bound is None else max(bound, after_seq)

    # -- deleting nodes ----------------------------------------------------------------------------

    def _delete_node(self, op: DeleteNode | ForgetNode, node: NodeRow) -> Result:
        came_again = node.owner_epoch > op.through_epoch
        if isinstance(op, ForgetNode) and (came_again or node.pending_rows):
            return _DONE
        node_id, pending = op.node_id, node.pending_rows
        self._count(node, -node.pending_rows, -node.pending_bytes)
        self.totals.unknown_nodes -= is_on_record(node) and not node.known
        node.history_rows = 0
        node.objects = 0
        self.objects[node_id] = {}
        self.paths.pop(node_id, None)
        self.used_ids = {key: used for key, used in self.used_ids.items() if key[0] != node_id}
        self.changed_objects = {
            key: change for key, change in self.changed_objects.items() if key[0] != node_id
        }
        self.removed_objects = {key for key in self.removed_objects if key[0] != node_id}
        self.events = [event for event in self.events if event.node_id != node_id]
        self.wiped_nodes.add(node_id)
        self.cuts.pop(node_id, None)
        self.changed_cuts.discard(node_id)
        if not came_again:
            self.changed_nodes.discard(node_id)
            del self.nodes[node_id]
        return Deleted(pending)

    # -- bookkeeping -------------------------------------------------------------------------------

    def _node(self, node_id: str) -> NodeRow:
        node = self.nodes.get(node_id)
        if node is None:
            node = self.nodes[node_id] = NodeRow(node_id)
        return node

    def _rows(self, node_id: str) -> dict[str, ObjectRow]:
        return self.objects.setdefault(node_id, {})

    def _own(self, row: ObjectRow) -> ObjectRow:
        """The row to change: a copy if an earlier result of this batch may hold the row."""
        if (row.node_id, row.key) not in self.changed_objects:
            return row
        own = snapshot(row)
        self._rows(row.node_id)[row.key] = own
        return own

    def _touch(self, row: ObjectRow, at_ms: int, change: Change = Change.MARKED) -> None:
        row.changed_at_ms = at_ms
        where = (row.node_id, row.key)
        if self.removed_objects:
            self.removed_objects.discard(where)
        known = self.changed_objects.get(where)
        if known is None or known < change:
            self.changed_objects[where] = change

    def _count(self, node: NodeRow, rows: int, size_bytes: int) -> None:
        node.pending_rows += rows
        node.pending_bytes += size_bytes
        self.totals.count(node, rows, size_bytes)
        self.changed_nodes.add(node.node_id)

    def _ended_event(self, row: ObjectRow, at_ms: int, epoch: int, reason: str) -> None:
        self._row_event(row, EventKind.ENDED, at_ms, epoch, reason)
        if not row.own_id:
            self.events[-1] = self.events[-1]._replace(accepted_at_ms=row.accepted_at_ms)

    def _row_event(
        self, row: ObjectRow, kind: EventKind, at_ms: int, epoch: int, reason: str = "", attempt: int = 0
    ) -> None:
        self._event(
            row.node_id,
            kind,
            at_ms,
            row.message_id,
            row.key,
            row.version,
            attempt or row.attempts,
            epoch,
            reason,
        )

    def _event(
        self,
        node_id: str,
        kind: EventKind,
        at_ms: int,
        message_id: str,
        key: str,
        version: int | None = None,
        attempt: int = 0,
        epoch: int = 0,
        reason: str = "",
    ) -> None:
        self.events.append(Event(node_id, kind, at_ms, message_id, key, version, attempt, epoch, reason))

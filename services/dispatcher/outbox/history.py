"""Lines of history in SQL: written, counted per node, and cut at a node's bound in the same transaction.

A node's own row counts its lines, so that nothing has to be counted in the table. At the bound the oldest go:
of acceptances, by which a message id that is used again is known, the newest third of the bound stays, and as
many of all other lines; the acceptances of what is pending stay always.
"""

from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, delete, select

from services.dispatcher.outbox.event_ids import EventIds
from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.quotas import most_history_rows
from services.dispatcher.outbox.records import EventKind
from services.dispatcher.outbox.repetitions import Transaction, Written
from services.dispatcher.outbox.retention import is_of_pending
from services.dispatcher.outbox.rows import event_values
from services.dispatcher.outbox.schema import delivery_event
from services.runtime.statements import insert_rows, update_rows

# What one transaction deletes at most of a node's history, which may be older than the bound.
MAX_TRIMMED = 20_000

_REPEATED = ["message_id", "attempt", "epoch", "repeats", "last_at_ms"]
_insert_event = insert_rows(delivery_event)
_repeat_event = update_rows(delivery_event, ["node_id", "event_id"], _REPEATED)

_event = delivery_event.c
_of_node = _event.node_id == bindparam("node")
_is_acceptance = _event.kind == int(EventKind.ACCEPTED)
_is_other = _event.kind != int(EventKind.ACCEPTED)


def _cutoff(which: ColumnElement[bool]) -> Select[int]:
    """The newest line that is one too many."""
    ids = select(_event.event_id).where(_of_node, which)
    return ids.order_by(_event.event_id.desc()).limit(1).offset(bindparam("kept"))


_cutoffs = [(which, _cutoff(which)) for which in (_is_other, and_(_is_acceptance, ~is_of_pending))]


def oldest_after(rows: int) -> Select[int]:
    """The oldest line but so many."""
    return select(_event.event_id).where(_of_node).order_by(_event.event_id).limit(1).offset(rows)


_oldest = oldest_after(MAX_TRIMMED)
_deletes = [
    delete(delivery_event).where(_of_node, which, _event.event_id <= bindparam("last"))
    for which in (_is_other, and_(_is_acceptance, ~is_of_pending))
]


@dataclass(slots=True)
class HistoryCounts:
    """Lines that went at a node's bound; events that were counted in a line; refusals and drops in no
    history, because nothing is known of their nodes."""

    trimmed: int = 0
    repeats: int = 0
    left_out: int = 0

    def add(self, other: "HistoryCounts") -> None:
        """Adds what another transaction came to."""
        self.trimmed += other.trimmed
        self.repeats += other.repeats
        self.left_out += other.left_out


@dataclass(slots=True)
class History:
    """The history's part of one transaction."""

    ids: EventIds
    lines: Transaction
    counts: HistoryCounts = field(default_factory=HistoryCounts)

    def prepare(self, connection: Connection, ledger: Ledger) -> Written:
        """What is to be written, counted in the nodes' rows; makes room where a node is at its bound."""
        written = self.lines.lay(ledger.events, self.ids)
        counts = Counter(line.event.node_id for line in written.new)
        for node_id, count in counts.items():
            node = ledger.nodes[node_id]
            node.history_rows += count
            ledger.changed_nodes.add(node_id)
            most = most_history_rows(ledger.quotas, node)
            if node.history_rows > most and node_id not in ledger.wiped_nodes:
                node.history_rows = self._trim(connection, node_id, most) + count
        for node_id in ledger.wiped_nodes:
            self.lines.deleted(node_id)
        self.counts = HistoryCounts(
            self.counts.trimmed, len(ledger.events) - len(written.new), ledger.left_out
        )
        return written

    def _trim(self, connection: Connection, node_id: str, most: int) -> int:
        """Deletes a node's oldest lines; what to count for those that stay."""
        kept = most // 3
        oldest = connection.execute(_oldest, {"node": node_id}).scalar()
        trimmed = 0
        for (which, cutoff), deletion in zip(_cutoffs, _deletes, strict=True):
            last = connection.execute(cutoff, {"node": node_id, "kept": kept}).scalar()
            if last is None:
                continue
            last = min(last, oldest) if oldest is not None else last
            trimmed += connection.execute(deletion, {"node": node_id, "last": last}).rowcount
            if which is _is_other:
                self.lines.deleted(node_id, last)
        self.counts.trimmed += trimmed
        # Older than the bound, and more than one transaction deletes: the next one goes on.
        return most if oldest is not None and trimmed else 2 * kept

    @staticmethod
    def write(connection: Connection, written: Written) -> None:
        """After `prepare`, and after whatever deletes lines of these nodes."""
        _insert_event.execute(connection, [event_values(line.event, line.event_id) for line in written.new])
        _repeat_event.execute(
            connection,
            [
                (*(getattr(event, name) for name in _REPEATED), event.node_id, event_id)
                for event_id, event in written.changed
            ],
        )

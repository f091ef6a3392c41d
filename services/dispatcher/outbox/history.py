"""Lines of history in SQL: written, counted per node, and cut at a node's bound by those who write.

A node's own row counts its lines, so that nothing has to be counted in the table. At the bound the oldest go:
of acceptances, by which a message id that is used again is known, the newest third of the bound stays, and as
many of all other lines; the acceptances of what is pending stay always.

A transaction cuts one node's history, and no more of it than those who wait for the transaction bear: nodes
that are published to alike come to their bound together. The others' turns come with the next transactions.
"""

from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, delete, func, select

from services.dispatcher.outbox.event_ids import EventIds
from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.quotas import most_history_rows
from services.dispatcher.outbox.records import EventKind
from services.dispatcher.outbox.repetitions import Transaction, Written
from services.dispatcher.outbox.retention import is_of_pending
from services.dispatcher.outbox.rows import event_values
from services.dispatcher.outbox.schema import delivery_event
from services.runtime.statements import insert_rows, update_rows

# What one transaction deletes at most of histories.
MAX_TRIMMED = 2_000
# Nodes whose history is being cut, of which is known how far; of others it is looked up again.
MAX_CUTS = 1024

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


def _portion(which: ColumnElement[bool]) -> Select[int]:
    """The oldest line but so many."""
    ids = select(_event.event_id).where(_of_node, which)
    return ids.order_by(_event.event_id).limit(1).offset(bindparam("rows"))


_kinds = (_is_other, and_(_is_acceptance, ~is_of_pending))
_cutoffs = [_cutoff(which) for which in _kinds]
_portions = [_portion(which) for which in _kinds]
_deletes = [
    delete(delivery_event).where(_of_node, which, _event.event_id <= bindparam("last")) for which in _kinds
]
_count = select(func.count()).select_from(delivery_event).where(_of_node)
Cut = dict[int, int]
"""Of a node's history, by the place in `_kinds`: the lines up to which id go."""


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


class Cuts:
    """How far histories are being cut, over transactions; whoever is forgotten is looked at again."""

    def __init__(self, max_nodes: int = MAX_CUTS) -> None:
        self._max_nodes = max_nodes
        self._of: dict[str, Cut] = {}

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._of

    def get(self, node_id: str) -> Cut | None:
        """What is left to do; None if nothing is known."""
        return self._of.get(node_id)

    def keep(self, node_id: str, left: Cut) -> None:
        """What is left to do now. Ids only grow: it stays true if the transaction comes to nothing."""
        self._of.pop(node_id, None)
        if left:
            self._of[node_id] = left
            if len(self._of) > self._max_nodes:
                del self._of[next(iter(self._of))]


@dataclass(slots=True)
class History:
    """The history's part of one transaction."""

    ids: EventIds
    lines: Transaction
    cuts: Cuts = field(default_factory=Cuts)
    counts: HistoryCounts = field(default_factory=HistoryCounts)

    def prepare(self, connection: Connection, ledger: Ledger) -> Written:
        """What is to be written, counted in the nodes' rows; makes room where a node is at its bound."""
        written = self.lines.lay(ledger.events, self.ids)
        counts = Counter(line.event.node_id for line in written.new)
        over: list[tuple[bool, int, str]] = []
        for node_id, count in counts.items():
            node = ledger.nodes[node_id]
            node.history_rows += count
            ledger.changed_nodes.add(node_id)
            excess = node.history_rows - most_history_rows(ledger.quotas, node)
            if excess > 0 and node_id not in ledger.wiped_nodes:
                over.append((node_id in self.cuts, excess, node_id))
        if over:
            node_id = max(over)[2]  # one that was begun is finished first
            node, count = ledger.nodes[node_id], counts[node_id]
            most = most_history_rows(ledger.quotas, node)
            node.history_rows = self._trim(connection, node_id, node.history_rows - count, most) + count
        for node_id in ledger.wiped_nodes:
            self.lines.deleted(node_id)
        self.counts = HistoryCounts(
            self.counts.trimmed, len(ledger.events) - len(written.new), ledger.left_out
        )
        return written

    def _trim(self, connection: Connection, node_id: str, rows: int, most: int) -> int:
        """Deletes some of a node's oldest lines; what to count for those that stay."""
        kept = most // 3
        cut = self.cuts.get(node_id)
        if cut is None:
            found = [connection.execute(one, {"node": node_id, "kept": kept}).scalar() for one in _cutoffs]
            cut = {place: last for place, last in enumerate(found) if last is not None}
        left: Cut = {}
        room = MAX_TRIMMED
        for place, last in cut.items():
            if not room:
                left[place] = last
                continue
            end = connection.execute(_portions[place], {"node": node_id, "rows": room - 1}).scalar()
            through = last if end is None else min(last, end)
            deleted = connection.execute(_deletes[place], {"node": node_id, "last": through}).rowcount
            room -= deleted
            rows -= deleted
            self.counts.trimmed += deleted
            if _kinds[place] is _is_other:
                self.lines.deleted(node_id, through)
            if through < last:
                left[place] = last
        self.cuts.keep(node_id, left)
        if left:
            return max(rows, most)  # so that the next line goes on with it
        # A node whose pending acceptances alone are more than that is not counted with each line.
        counted = int(connection.execute(_count, {"node": node_id}).scalar_one())
        return counted if counted <= most else 2 * kept

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

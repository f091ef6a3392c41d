"""One group commit: load what the operations name, let the ledger change it, write it back."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    FromClause,
    Integer,
    Select,
    and_,
    bindparam,
    cast,
    false,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql

from services.dispatcher.outbox.history import History
from services.dispatcher.outbox.known_rows import Known
from services.dispatcher.outbox.ledger import Change, Ledger
from services.dispatcher.outbox.needs import Needs, needs_of
from services.dispatcher.outbox.quotas import Quotas, Totals
from services.dispatcher.outbox.records import NO_CUTS, Cuts, NodeRow, ObjectRow, Op, Result
from services.dispatcher.outbox.rows import (
    cleared_values,
    node_row,
    node_values,
    object_row,
    object_values,
    version_number,
)
from services.dispatcher.outbox.schema import delivery, delivery_event, link_cuts, node
from services.runtime.array_text import array_text
from services.runtime.rowsets import RowQuery, given_columns
from services.runtime.statements import delete_rows, insert_rows, update_rows

DELIVERY_COLUMNS = [column for column in delivery.c if column.name != "message"]
_NAMES = [column.name for column in DELIVERY_COLUMNS]
_KEYS = ("node_id", "object_key")
_ENDLESS = 2**63 - 1
_MUTABLE = [name for name in _NAMES if name not in (*_KEYS, "path", "uid")]
_MARKED = _MUTABLE[:-1]  # a row that is only marked keeps the type of its object, which is last
_CLEARED = ["acknowledged", "deleted", "state", "attempts", "reason", "changed_at_ms", "expires_at_ms"]

_upsert_node = insert_rows(node, overwrite=[column.name for column in node.c if column.name != "node_id"])
_delete_node = delete_rows(node, ["node_id"])
_upsert_delivery = insert_rows(delivery, overwrite=[*_MUTABLE, "message"])
_update_delivery = update_rows(delivery, _KEYS, _MARKED)
_clear_delivery = update_rows(delivery, _KEYS, _CLEARED, cleared=["message"])
_delete_delivery = delete_rows(delivery, _KEYS)
_wipe_delivery = delete_rows(delivery, ["node_id"])
_wipe_events = delete_rows(delivery_event, ["node_id"])
_delete_cuts = delete_rows(link_cuts, ["node_id"])
_upsert_cuts = insert_rows(
    link_cuts, overwrite=[column.name for column in link_cuts.c if column.name != "node_id"]
)


def _deliveries(*columns: str, pending: bool = False) -> RowQuery:
    """Rows of `delivery` by some of their columns. Their nodes' rows are locked, which guards them too."""

    def build(wanted: FromClause) -> Select[Any]:
        on = [delivery.c[name] == wanted.c[name] for name in columns]
        if pending:
            on.append(delivery.c.state != 0)
        return select(*DELIVERY_COLUMNS).join_from(wanted, delivery, and_(*on))

    return RowQuery(columns, build)


_deliveries_by_key = _deliveries("node_id", "object_key")
_deliveries_pending = _deliveries("node_id", pending=True)


def _at_path(wanted: FromClause) -> Select[Any]:
    """What is live at a path, and what went there last; of all that went before, nothing is read."""
    other = delivery.alias("other")
    last = (
        select(func.max(other.c.seq))
        .where(
            other.c.node_id == wanted.c.node_id, other.c.path == wanted.c.path, other.c.is_answer.is_(False)
        )
        .correlate(wanted)
        .scalar_subquery()
    )
    bounds = select(wanted.c.node_id, wanted.c.path, last.label("last_seq")).cte("bounds")
    bounds = bounds.prefix_with("MATERIALIZED")  # else SQLite too would look for it anew for each row
    return select(*DELIVERY_COLUMNS).join_from(
        bounds,
        delivery,
        and_(
            delivery.c.node_id == bounds.c.node_id,
            delivery.c.path == bounds.c.path,
            delivery.c.is_answer.is_(False),
            or_(delivery.c.deleted.is_(False), delivery.c.seq == bounds.c.last_seq),
        ),
    )


_deliveries_at_path = RowQuery(["node_id", "path"], _at_path)


def _portion(wanted: FromClause) -> Select[Any]:
    """The next pending rows of each node above a seq, as many as the parameter `skipped` and one more."""
    after = cast(wanted.c.after_seq, BigInteger)
    other = delivery.alias("other")
    last = (
        select(other.c.seq)
        .where(other.c.node_id == wanted.c.node_id, other.c.state != 0, other.c.seq > after)
        .order_by(other.c.seq)
        .limit(1)
        .offset(bindparam("skipped", type_=Integer))
        .correlate(wanted)
        .scalar_subquery()
    )
    bounds = select(
        wanted.c.node_id,
        after.label("after_seq"),
        func.coalesce(last, literal(_ENDLESS, BigInteger)).label("through_seq"),
    ).cte("bounds")
    # Else the bound would be looked for anew for each row.
    bounds = bounds.prefix_with("MATERIALIZED", dialect="postgresql")
    return select(*DELIVERY_COLUMNS).join_from(
        bounds,
        delivery,
        and_(
            delivery.c.node_id == bounds.c.node_id,
            delivery.c.state != 0,
            delivery.c.seq > bounds.c.after_seq,
            delivery.c.seq <= bounds.c.through_seq,
        ),
    )


_deliveries_portion = RowQuery(["node_id", "after_seq"], _portion)

_nodes_by_id = RowQuery(
    ["node_id"],
    lambda wanted: select(node).join_from(wanted, node, node.c.node_id == wanted.c.node_id),
)
_nodes_by_id_locked = RowQuery(
    ["node_id"],
    lambda wanted: (
        select(node)
        .join_from(wanted, node, node.c.node_id == wanted.c.node_id)
        .order_by(node.c.node_id)
        .with_for_update(of=node)
    ),
)
_cuts_by_node = RowQuery(
    ["node_id"],
    lambda wanted: select(link_cuts).join_from(wanted, link_cuts, link_cuts.c.node_id == wanted.c.node_id),
)
_accepted_by_id = RowQuery(
    ["node_id", "message_id"],
    lambda wanted: select(
        delivery_event.c.node_id,
        delivery_event.c.message_id,
        delivery_event.c.object_key,
        delivery_event.c.version,
    ).join_from(
        wanted,
        delivery_event,
        and_(
            delivery_event.c.kind == 1,
            delivery_event.c.node_id == wanted.c.node_id,
            delivery_event.c.message_id == wanted.c.message_id,
        ),
    ),
)

# Makes nodes' rows that are missing, in the order of ids, or locks those that somebody else has made just
# now, so that two transactions that meet at a new node go one after the other too. A conflict locks the row;
# the condition keeps it from being written anew.
_wanted_nodes = given_columns("wanted", {"node_id": node.c.node_id.type})
_lock_nodes = (
    postgresql.insert(node)
    .from_select(
        [column.name for column in node.c],
        select(
            _wanted_nodes.c.node_id,
            *(literal(False if c.name == "known" else 0, c.type) for c in node.c if c.name != "node_id"),
        ).order_by(_wanted_nodes.c.node_id),
    )
    .on_conflict_do_update(index_elements=["node_id"], set_={"last_seq": node.c.last_seq}, where=false())
    .returning(node.c.node_id)
)


def lock_nodes(
    connection: Connection, node_ids: Collection[str], if_there: Collection[str] = ()
) -> tuple[dict[str, NodeRow], set[str]]:
    """Node rows, locked until the transaction ends where the engine locks rows; and the ids of those that
    were made for it. Of `if_there` none is made."""
    fresh: set[str] = set()
    wanted = sorted({*node_ids, *if_there})
    is_shared = connection.dialect.name == "postgresql"
    query = _nodes_by_id_locked if is_shared else _nodes_by_id
    found = {
        row[0]: node_row(row, row[7]) for row in query.execute(connection, [(node_id,) for node_id in wanted])
    }
    if is_shared and (missing := [node_id for node_id in sorted(node_ids) if node_id not in found]):
        fresh.update(connection.execute(_lock_nodes, {"node_id": array_text(missing)}).scalars())
        made = _nodes_by_id.execute(connection, [(node_id,) for node_id in missing])
        found.update((row[0], node_row(row, row[7])) for row in made)
    return found, fresh


def lock_free_nodes(connection: Connection, node_ids: Collection[str]) -> set[str]:
    """Locks what nobody else holds, without waiting; the ids of the others."""
    known = set(connection.execute(select(node.c.node_id).where(node.c.node_id.in_(node_ids))).scalars())
    free = (
        select(node.c.node_id)
        .where(node.c.node_id.in_(known))
        .order_by(node.c.node_id)
        .with_for_update(skip_locked=True)
    )
    return known - set(connection.execute(free).scalars())


def load_ledger(connection: Connection, needs: Needs, quotas: Quotas, totals: Totals, known: Known) -> Ledger:
    """Everything the operations look at. Nodes are locked before their objects are read."""
    objects: defaultdict[str, dict[str, ObjectRow]] = defaultdict(dict)
    nodes: dict[str, NodeRow] = {}
    wanted_nodes: list[str] = []
    wanted_objects: list[tuple[str, str]] = []
    told_of: list[str] = []
    fresh: set[str] = set()
    for names, missing in ((needs.nodes, wanted_nodes), (needs.told_of - needs.nodes, told_of)):
        for node_id in names:
            if (node_known := known.node(node_id)) is not None:
                nodes[node_id] = node_known
            else:
                missing.append(node_id)
    if wanted_nodes or told_of:
        found, fresh = lock_nodes(connection, wanted_nodes, told_of)
        nodes.update(found)
        known.locked(found.values())
    wanted_paths: set[tuple[str, str]] = set()
    for where, path in needs.objects.items():
        if (object_known := known.object(where)) is not None:
            objects[where[0]][where[1]] = object_known
            if object_known.deleted and path:
                wanted_paths.add((where[0], path))
        else:
            wanted_objects.append(where)
    if wanted_objects:
        for row in _deliveries_by_key.execute(connection, sorted(wanted_objects)):
            objects[row[0]][row[1]] = object_row(row)
        # An object that is live is the only one of its path.
        for where in wanted_objects:
            if path := needs.objects[where]:
                own = objects[where[0]].get(where[1])
                if own is None or own.deleted:
                    wanted_paths.add((where[0], path))
    for query, rows in (
        (_deliveries_at_path, sorted(wanted_paths)),
        (_deliveries_pending, [(node_id,) for node_id in sorted(needs.pending_of)]),
    ):
        if rows:
            for row in query.execute(connection, rows):
                objects[row[0]].setdefault(row[1], object_row(row))
    # Most nodes that connect have nothing pending: their rows are not looked through.
    portions = {
        node_id: after_seq
        for node_id, after_seq in needs.portions.items()
        if node_id in nodes and nodes[node_id].pending_rows
    }
    read_through = _load_portions(connection, portions, needs.portion_rows, objects) if portions else {}
    cuts: dict[str, Cuts] = {}
    if needs.cuts_of:
        for row in _cuts_by_node.execute(connection, [(node_id,) for node_id in sorted(needs.cuts_of)]):
            cuts[row[0]] = Cuts(*map(int, row[1:5]))
    used_ids: dict[tuple[str, str], tuple[str, int | None]] = {}
    if needs.message_ids:
        for row in _accepted_by_id.execute(connection, sorted(needs.message_ids)):
            used_ids[row[0], row[1]] = (row[2], version_number(row[3]))
    return Ledger(quotas, totals, nodes, objects, used_ids, fresh, needs.portion_rows, read_through, cuts)


def _load_portions(
    connection: Connection,
    portions: dict[str, int],
    portion_rows: int,
    objects: defaultdict[str, dict[str, ObjectRow]],
) -> dict[str, int]:
    """Adds the next pending rows of nodes above a seq; says up to where, of those that may have more."""
    wanted = [(node_id, str(after_seq)) for node_id, after_seq in sorted(portions.items())]
    counts: Counter[str] = Counter()
    last: dict[str, int] = {}
    for row in _deliveries_portion.execute(connection, wanted, skipped=portion_rows - 1):
        node_id, seq = row[0], row[8]
        counts[node_id] += 1
        last[node_id] = max(seq, last.get(node_id, 0))
        objects[node_id].setdefault(row[1], object_row(row))
    return {node_id: last[node_id] for node_id, count in counts.items() if count >= portion_rows}


def write_ledger(connection: Connection, ledger: Ledger, history: History, known: Known) -> None:
    """Writes what changed, sorted by key so that concurrent transactions lock in one order."""
    written = history.prepare(connection, ledger)
    if connection.dialect.name == "postgresql":
        ledger.revise(random.getrandbits(60))
    wiped = [(node_id,) for node_id in sorted(ledger.wiped_nodes)]
    _wipe_delivery.execute(connection, wiped)
    _wipe_events.execute(connection, wiped)
    kept = {node_id: ledger.cuts[node_id] for node_id in sorted(ledger.changed_cuts)}
    over = ledger.wiped_nodes | {node_id for node_id, cuts in kept.items() if cuts == NO_CUTS}
    _delete_cuts.execute(connection, [(node_id,) for node_id in sorted(over)])
    _upsert_cuts.execute(connection, [(node_id, *cuts) for node_id, cuts in kept.items() if cuts != NO_CUTS])
    _upsert_node.execute(
        connection, [node_values(ledger.nodes[name]) for name in sorted(ledger.changed_nodes)]
    )
    whole: list[tuple[Any, ...]] = []
    parts: list[tuple[Any, ...]] = []
    cleared: list[tuple[Any, ...]] = []
    for where in sorted(ledger.changed_objects):
        row = ledger.objects[where[0]][where[1]]
        change = ledger.changed_objects[where]
        if change == Change.ACCEPTED:
            whole.append((*object_values(row), row.body))
        elif change == Change.CLEARED:
            cleared.append((*cleared_values(row), *where))
        else:
            values = object_values(row)
            parts.append((*values[4:-1], *where))
    _upsert_delivery.execute(connection, whole)
    _update_delivery.execute(connection, parts)
    _clear_delivery.execute(connection, cleared)
    _delete_delivery.execute(connection, sorted(ledger.removed_objects))
    history.write(connection, written)
    # Deleted, or made only to be locked.
    gone = (ledger.wiped_nodes | ledger.fresh_nodes) - ledger.changed_nodes
    _delete_node.execute(connection, [(node_id,) for node_id in sorted(gone)])
    known.keep(ledger)


def apply_ops(
    connection: Connection,
    ops: Sequence[Op],
    quotas: Quotas,
    totals: Totals,
    history: History,
    known: Known,
) -> list[Result]:
    """All operations, in order, in the caller's transaction."""
    listed = list(ops)
    ledger = load_ledger(connection, needs_of(listed), quotas, totals, known)
    results = [ledger.apply(op) for op in listed]
    write_ledger(connection, ledger, history, known)
    return results

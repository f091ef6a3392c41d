"""One group commit: load what the operations name, let the ledger change it, write it back."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, delete, insert, null, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from services.dispatcher.outbox.ledger import Change, Ledger, Needs, Quotas, Totals, needs_of
from services.dispatcher.outbox.records import NodeRow, ObjectRow, Op, Result
from services.dispatcher.outbox.rows import (
    cleared_values,
    event_values,
    node_row,
    node_values,
    object_row,
    object_values,
    version_number,
)
from services.dispatcher.outbox.schema import delivery, delivery_event, node
from services.runtime.rowsets import row_parameters, wanted_rows
from services.runtime.statements import ManyRows

DELIVERY_COLUMNS = [column for column in delivery.c if column.name != "message"]
_NAMES = [column.name for column in DELIVERY_COLUMNS]
_KEYS = ("node_id", "object_key")
_MUTABLE = [name for name in _NAMES if name not in (*_KEYS, "path", "uid")]
_CLEARED = ["acknowledged", "deleted", "state", "attempts", "reason", "changed_at_ms", "expires_at_ms"]
_THIS = ["_node_id", "_object_key"]

_insert_node = upsert(node)
_upsert_node = ManyRows(
    _insert_node.on_conflict_do_update(
        index_elements=["node_id"],
        set_={c.name: _insert_node.excluded[c.name] for c in node.c if c.name != "node_id"},
    ),
    [column.name for column in node.c],
)
_insert_delivery = upsert(delivery)
_upsert_delivery = ManyRows(
    _insert_delivery.on_conflict_do_update(
        index_elements=list(_KEYS),
        set_={name: _insert_delivery.excluded[name] for name in (*_MUTABLE, "message")},
    ),
    [*_NAMES, "message"],
)
_this_delivery = and_(
    delivery.c.node_id == bindparam("_node_id"), delivery.c.object_key == bindparam("_object_key")
)
_update_delivery = ManyRows(
    update(delivery).where(_this_delivery).values({name: bindparam(name) for name in _MUTABLE}),
    [*_MUTABLE, *_THIS],
)
_clear_delivery = ManyRows(
    update(delivery)
    .where(_this_delivery)
    .values({**{name: bindparam(name) for name in _CLEARED}, "message": null()}),
    [*_CLEARED, *_THIS],
)
_delete_delivery = ManyRows(delete(delivery).where(_this_delivery), _THIS)
_insert_event = ManyRows(insert(delivery_event), [column.name for column in delivery_event.c])


def _deliveries(*columns: str, pending: bool = False) -> Select[Any]:
    """Rows of `delivery` by some of their columns, locked where the engine locks rows."""
    wanted = wanted_rows("wanted", columns)
    on = [delivery.c[name] == wanted.c[name] for name in columns]
    if pending:
        on.append(delivery.c.state != 0)
    return select(*DELIVERY_COLUMNS).join_from(wanted, delivery, and_(*on)).with_for_update(of=delivery)


_deliveries_by_key = _deliveries("node_id", "object_key")
_deliveries_by_path = _deliveries("node_id", "path")
_deliveries_pending = _deliveries("node_id", pending=True)

_wanted_nodes = wanted_rows("wanted", ["node_id"])
_nodes_by_id = (
    select(node)
    .join_from(_wanted_nodes, node, node.c.node_id == _wanted_nodes.c.node_id)
    .with_for_update(of=node)
)
_wanted_ids = wanted_rows("wanted", ["node_id", "message_id"])
_accepted_by_id = select(
    delivery_event.c.node_id,
    delivery_event.c.message_id,
    delivery_event.c.object_key,
    delivery_event.c.version,
).join_from(
    _wanted_ids,
    delivery_event,
    and_(
        delivery_event.c.kind == 1,
        delivery_event.c.node_id == _wanted_ids.c.node_id,
        delivery_event.c.message_id == _wanted_ids.c.message_id,
    ),
)


class EventIds:
    """Event ids that grow with time and never repeat: `last` is the highest given out before."""

    def __init__(self, last: int = 0) -> None:
        self._last = last

    def next(self, at_ms: int) -> int:
        """Microseconds since the Unix epoch, or one above the last."""
        self._last = max(self._last + 1, at_ms * 1000)
        return self._last


def load_nodes(connection: Connection, node_ids: Collection[str]) -> dict[str, NodeRow]:
    """Node rows, locked where the engine locks rows."""
    parameters = row_parameters("wanted", [[node_id] for node_id in sorted(node_ids)])
    return {row[0]: node_row(row) for row in connection.execute(_nodes_by_id, parameters)}


def load_ledger(connection: Connection, needs: Needs, quotas: Quotas, totals: Totals) -> Ledger:
    """Everything the operations look at. Nodes are locked before their objects."""
    objects: defaultdict[str, dict[str, ObjectRow]] = defaultdict(dict)
    nodes = load_nodes(connection, needs.nodes)
    for query, rows in (
        (_deliveries_by_key, sorted(needs.objects)),
        (_deliveries_by_path, sorted(needs.paths)),
        (_deliveries_pending, [(node_id,) for node_id in sorted(needs.pending_of)]),
    ):
        if rows:
            for row in connection.execute(query, row_parameters("wanted", rows)):
                objects[row[0]].setdefault(row[1], object_row(row))
    used_ids: dict[tuple[str, str], tuple[str, int | None]] = {}
    if needs.message_ids:
        for row in connection.execute(_accepted_by_id, row_parameters("wanted", sorted(needs.message_ids))):
            used_ids[row[0], row[1]] = (row[2], version_number(row[3]))
    return Ledger(quotas, totals, nodes, objects, used_ids)


def write_ledger(connection: Connection, ledger: Ledger, event_ids: EventIds) -> None:
    """Writes what changed, sorted by key so that concurrent transactions lock in one order."""
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
            body = row.message.SerializeToString() if row.message is not None else None
            whole.append((*object_values(row), body))
        elif change == Change.CLEARED:
            cleared.append((*cleared_values(row), *where))
        else:
            values = object_values(row)
            parts.append((*values[4:], *where))
    _upsert_delivery.execute(connection, whole)
    _update_delivery.execute(connection, parts)
    _clear_delivery.execute(connection, cleared)
    _delete_delivery.execute(connection, sorted(ledger.removed_objects))
    _insert_event.execute(
        connection, [event_values(event, event_ids.next(event.at_ms)) for event in ledger.events]
    )


def apply_ops(
    connection: Connection, ops: Sequence[Op], quotas: Quotas, totals: Totals, event_ids: EventIds
) -> list[Result]:
    """All operations, in order, in the caller's transaction."""
    listed = list(ops)
    ledger = load_ledger(connection, needs_of(listed), quotas, totals)
    results = [ledger.apply(op) for op in listed]
    write_ledger(connection, ledger, event_ids)
    return results

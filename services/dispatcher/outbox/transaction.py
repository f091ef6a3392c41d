"""One group commit: load what the operations name, let the ledger change it, write it back."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from services.dispatcher.outbox.ledger import Ledger, Needs, Quotas, Totals, needs_of
from services.dispatcher.outbox.records import NodeRow, ObjectRow, Op, Result
from services.dispatcher.outbox.rows import (
    event_values,
    node_row,
    node_values,
    object_row,
    object_values,
    version_number,
)
from services.dispatcher.outbox.schema import delivery, delivery_event, node
from services.runtime.rowsets import wanted_rows

DELIVERY_COLUMNS = [column for column in delivery.c if column.name != "message"]
_KEYS = ("node_id", "object_key")
_MUTABLE = [column.name for column in DELIVERY_COLUMNS if column.name not in (*_KEYS, "path", "uid")]

_upsert_node = upsert(node)
_upsert_node = _upsert_node.on_conflict_do_update(
    index_elements=["node_id"],
    set_={column.name: _upsert_node.excluded[column.name] for column in node.c if column.name != "node_id"},
)
_upsert_delivery = upsert(delivery)
_upsert_delivery = _upsert_delivery.on_conflict_do_update(
    index_elements=list(_KEYS),
    set_={name: _upsert_delivery.excluded[name] for name in (*_MUTABLE, "message")},
)
_this_delivery = and_(
    delivery.c.node_id == bindparam("_node_id"), delivery.c.object_key == bindparam("_object_key")
)
_update_delivery = update(delivery).where(_this_delivery)
_update_delivery = _update_delivery.values({name: bindparam(name) for name in _MUTABLE})
_delete_delivery = delete(delivery).where(_this_delivery)
_insert_event = insert(delivery_event)


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
    wanted = wanted_rows("wanted", ["node_id"], [[node_id] for node_id in sorted(node_ids)])
    query = select(node).join_from(wanted, node, node.c.node_id == wanted.c.node_id).with_for_update(of=node)
    return {row[0]: node_row(row) for row in connection.execute(query)}


def _deliveries(
    where: Callable[[Any], Any], columns: Sequence[str], rows: Collection[Sequence[str]]
) -> Select[Any]:
    wanted = wanted_rows("wanted", columns, rows)
    return select(*DELIVERY_COLUMNS).join_from(wanted, delivery, where(wanted.c)).with_for_update(of=delivery)


def load_ledger(connection: Connection, needs: Needs, quotas: Quotas, totals: Totals) -> Ledger:
    """Everything the operations look at."""
    objects: defaultdict[str, dict[str, ObjectRow]] = defaultdict(dict)
    queries: list[Select[Any]] = []
    if needs.objects:
        queries.append(
            _deliveries(
                lambda w: and_(delivery.c.node_id == w.node_id, delivery.c.object_key == w.object_key),
                _KEYS,
                sorted(needs.objects),
            )
        )
    if needs.paths:
        queries.append(
            _deliveries(
                lambda w: and_(delivery.c.node_id == w.node_id, delivery.c.path == w.path),
                ("node_id", "path"),
                sorted(needs.paths),
            )
        )
    if needs.pending_of:
        queries.append(
            _deliveries(
                lambda w: and_(delivery.c.node_id == w.node_id, delivery.c.state != 0),
                ("node_id",),
                [[node_id] for node_id in sorted(needs.pending_of)],
            )
        )
    nodes = load_nodes(connection, needs.nodes)
    for query in queries:
        for row in connection.execute(query):
            objects[row[0]].setdefault(row[1], object_row(row))
    used_ids: dict[tuple[str, str], tuple[str, int | None]] = {}
    if needs.message_ids:
        event = delivery_event.c
        wanted = wanted_rows("wanted", ("node_id", "message_id"), sorted(needs.message_ids))
        query = select(event.node_id, event.message_id, event.object_key, event.version).join_from(
            wanted,
            delivery_event,
            and_(event.kind == 1, event.node_id == wanted.c.node_id, event.message_id == wanted.c.message_id),
        )
        for row in connection.execute(query):
            used_ids[row[0], row[1]] = (row[2], version_number(row[3]))
    return Ledger(quotas, totals, nodes, objects, used_ids)


def write_ledger(connection: Connection, ledger: Ledger, event_ids: EventIds) -> None:
    """Writes what changed, sorted by key so that concurrent transactions lock in one order."""
    if ledger.changed_nodes:
        connection.execute(
            _upsert_node, [node_values(ledger.nodes[name]) for name in sorted(ledger.changed_nodes)]
        )
    whole: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for where in sorted(ledger.changed_objects):
        row = ledger.objects[where[0]][where[1]]
        values = object_values(row)
        if ledger.changed_objects[where]:
            values["message"] = row.message.SerializeToString() if row.message is not None else None
            whole.append(values)
        else:
            values["_node_id"], values["_object_key"] = where
            parts.append(values)
    if whole:
        connection.execute(_upsert_delivery, whole)
    if parts:
        connection.execute(_update_delivery, parts)
    if ledger.removed_objects:
        connection.execute(
            _delete_delivery,
            [{"_node_id": node_id, "_object_key": key} for node_id, key in sorted(ledger.removed_objects)],
        )
    if ledger.events:
        connection.execute(
            _insert_event, [event_values(event, event_ids.next(event.at_ms)) for event in ledger.events]
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

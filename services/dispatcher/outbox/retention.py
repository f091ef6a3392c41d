"""What is too old to be kept, node by node.

Ids of events grow with time within a node, and so the primary key finds the old ones of a node without
looking at the others, and no index on their age has to be kept up by every write.
"""

from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import (
    CTE,
    Connection,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    func,
    literal,
    select,
    update,
)

from services.dispatcher.outbox.contract import SweepPlace, Swept
from services.dispatcher.outbox.event_ids import first_id_of
from services.dispatcher.outbox.schema import delivery, delivery_event, node

NODES_PER_STEP = 256


def _walk(table: Table) -> CTE:
    """The next nodes after `after` that have rows in a table: each is one step down its primary key."""
    node_id = table.c.node_id
    first = select(func.min(node_id)).where(node_id > bindparam("after")).scalar_subquery()
    walk = select(first.label("node_id"), literal(1).label("place")).cte("walk", recursive=True)
    following = select(func.min(node_id)).where(node_id > walk.c.node_id).scalar_subquery()
    more = and_(walk.c.node_id.is_not(None), walk.c.place < NODES_PER_STEP)
    return walk.union_all(select(following, walk.c.place + 1).where(more))


def _end_of(walk: CTE) -> Select[Any, int]:
    """The last node of a walk, and how many they are."""
    return select(func.max(walk.c.node_id), func.count(walk.c.node_id))


_event, _object = delivery_event.c, delivery.c
_with_events, _with_objects = _walk(delivery_event), _walk(delivery)
_end_of_events, _end_of_objects = _end_of(_with_events), _end_of(_with_objects)
# What is still pending keeps its acceptance, so that its message id stays known.
is_of_pending = and_(
    _event.kind == 1,
    select(_object.node_id)
    .where(
        _object.node_id == _event.node_id,
        _object.object_key == _event.object_key,
        _object.message_id == _event.message_id,
        _object.state != 0,
    )
    .exists(),
)
_is_old = and_(
    _event.node_id == _with_events.c.node_id, _event.event_id < bindparam("before"), ~is_of_pending
)
_old_events = (
    select(_event.node_id, _event.event_id)
    .join_from(_with_events, delivery_event, _is_old)
    .limit(bindparam("limit"))
)
# A range of the primary key for each node, not a row at a time.
_delete_events = delete(delivery_event).where(
    _event.node_id == bindparam("_node_id"), _event.event_id <= bindparam("_last"), ~is_of_pending
)
_is_old_tombstone = and_(
    _object.deleted.is_(True), _object.state == 0, _object.changed_at_ms < bindparam("before")
)
_old_tombstones = (
    select(_object.node_id, _object.object_key)
    .join_from(_with_objects, delivery, and_(_object.node_id == _with_objects.c.node_id, _is_old_tombstone))
    .limit(bindparam("limit"))
)
# With the condition again: one may have become an object anew since it was looked at.
_delete_tombstone = delete(delivery).where(
    _object.node_id == bindparam("_node_id"),
    _object.object_key == bindparam("_object_key"),
    _is_old_tombstone,
)


def revised(node_ids: Collection[str]) -> Update:
    """Locks the rows of nodes, and says in them that rows of theirs are changed past the ledger."""
    ids = select(node.c.node_id).where(node.c.node_id.in_(node_ids)).order_by(node.c.node_id)
    return update(node).where(node.c.node_id.in_(ids.with_for_update())).values(revision=node.c.revision + 1)


def recounted(node_ids: Collection[str]) -> Update:
    """Counts the objects of nodes, whose rows are locked."""
    of_node = and_(_object.node_id == node.c.node_id, _object.is_answer.is_(False))
    count = select(func.count()).select_from(delivery).where(of_node).scalar_subquery()
    return update(node).where(node.c.node_id.in_(node_ids)).values(objects=count)


def swept(
    connection: Connection,
    events_before_ms: int,
    tombstones_before_ms: int,
    limit: int,
    place: SweepPlace,
    forget: Callable[[], None],
) -> Swept:
    """One step of `contract.Outbox.sweep`, in a transaction; `forget` is called before objects go."""
    before = first_id_of(events_before_ms)
    events, events_after = _found(connection, _old_events, _end_of_events, place.events, before, limit)
    if events:
        # In their order: of each node the last one counts.
        last = dict(events)
        connection.execute(
            _delete_events, [{"_node_id": node_id, "_last": event_id} for node_id, event_id in last.items()]
        )
    before = tombstones_before_ms
    tombstones, objects_after = _found(
        connection, _old_tombstones, _end_of_objects, place.tombstones, before, limit
    )
    if tombstones:
        node_ids = {row[0] for row in tombstones}
        connection.execute(revised(node_ids))
        forget()
        connection.execute(
            _delete_tombstone,
            [{"_node_id": row[0], "_object_key": row[1], "before": before} for row in tombstones],
        )
        connection.execute(recounted(node_ids))
    return Swept(len(events) + len(tombstones), SweepPlace(events_after, objects_after))


def _found(
    connection: Connection,
    old: Select[Any, Any],
    end_of: Select[Any, int],
    after: str | None,
    before: int,
    limit: int,
) -> tuple[list[tuple[Any, ...]], str | None]:
    """Keys of old rows of the next nodes, and where to go on: there again if these were not all."""
    if after is None:
        return [], None
    rows = sorted(
        tuple(row) for row in connection.execute(old, {"after": after, "before": before, "limit": limit})
    )
    if len(rows) == limit:
        return rows, after
    last, nodes = connection.execute(end_of, {"after": after}).one()
    return rows, last if nodes == NODES_PER_STEP else None

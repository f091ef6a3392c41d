"""Since when what is pending has been so: of each node the first in its order, some nodes at a time."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select

from services.dispatcher.outbox.records import RowState
from services.dispatcher.outbox.schema import delivery, node
from services.runtime.rowsets import RowQuery

NODES_PER_STEP = 5000
"""Looked at, whatever they have: few of many may have something pending."""
MAX_OBJECTS_PER_STEP = 20_000
"""Of all nodes of a step after its first: where no index knows what is pending, all are looked at."""

_object = delivery.c
_next_nodes = (
    select(node.c.node_id, node.c.objects, node.c.pending_rows > 0)
    .where(node.c.node_id > bindparam("after"))
    .order_by(node.c.node_id)
    .limit(bindparam("nodes"))
)
_first_of_nodes = RowQuery(
    ["node_id"],
    lambda wanted: select(
        wanted.c.node_id,
        select(_object.accepted_at_ms)
        .where(
            _object.node_id == wanted.c.node_id, _object.state != 0, _object.state == int(RowState.PENDING)
        )
        .order_by(_object.seq)
        .limit(1)
        .scalar_subquery(),
    ),
)


class Ages(NamedTuple):
    """One step: when each node's first pending message was accepted (wall clock, ms; of a node whose messages
    are all parked there is none), and after which node it goes on, None if these were all."""

    accepted_at_ms: dict[str, int]
    after: str | None


def first_pending(connection: Connection, after: str) -> Ages:
    """Of the next nodes after one, those that have something pending or parked."""
    looked_at = list(connection.execute(_next_nodes, {"after": after, "nodes": NODES_PER_STEP}))
    found = [
        (str(node_id), objects if isinstance(objects, int) else 0)
        for node_id, objects, has_pending in looked_at
        if has_pending
    ]
    chosen = _within_bound(found)
    if len(chosen) < len(found):
        reached: str | None = chosen[-1]
    else:
        reached = str(looked_at[-1][0]) if len(looked_at) == NODES_PER_STEP else None
    rows = _first_of_nodes.execute(connection, [(node_id,) for node_id in chosen]) if chosen else ()
    return Ages(
        # SQLite keeps whatever is written to a column; who reads such a row whole tells of its damage.
        {node_id: at_ms for node_id, at_ms in rows if isinstance(at_ms, int)},
        reached,
    )


def _within_bound(found: Sequence[tuple[str, int]]) -> list[str]:
    chosen: list[str] = []
    objects = 0
    for node_id, count in found:
        objects += count
        if chosen and objects > MAX_OBJECTS_PER_STEP:
            break
        chosen.append(node_id)
    return chosen

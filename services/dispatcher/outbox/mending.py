"""What releases before this one left, or leave beside it: several live objects at a path, and objects that
nobody counted. Looked for once after each start, node by node."""

from typing import Any

from sqlalchemy import Connection, FromClause, Integer, Select, and_, bindparam, case, cast, func, or_, select

from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.records import ObjectRow
from services.dispatcher.outbox.rows import object_row
from services.dispatcher.outbox.schema import delivery, node
from services.dispatcher.outbox.transaction import DELIVERY_COLUMNS
from services.runtime.rowsets import RowQuery

NODES_PER_STEP = 256

_object = delivery.c
_next_nodes = (
    select(node.c.node_id).where(node.c.node_id > bindparam("after")).order_by(node.c.node_id)
).limit(NODES_PER_STEP)
_is_live = and_(_object.deleted.is_(False), _object.is_answer.is_(False), _object.path != "")
_objects = func.coalesce(func.sum(case((_object.is_answer.is_(False), 1), else_=0)), 0)
_live = func.coalesce(func.sum(case((_is_live, 1), else_=0)), 0)
_paths = func.count(func.distinct(case((_is_live, _object.path))))
# Nodes up to one whose counter is wrong, or that have more live objects than paths of such.
_to_mend = (
    select(node.c.node_id)
    .join_from(node, delivery, _object.node_id == node.c.node_id, isouter=True)
    .where(node.c.node_id > bindparam("after"), node.c.node_id <= bindparam("last"))
    .group_by(node.c.node_id, node.c.objects)
    .having(or_(node.c.objects != cast(_objects, Integer), _live > _paths))
)


def _doubled(wanted: FromClause) -> Select[Any]:
    """The live objects of nodes at the paths that have several."""
    other = delivery.alias("other")
    paths = (
        select(other.c.node_id, other.c.path)
        .join_from(wanted, other, other.c.node_id == wanted.c.node_id)
        .where(other.c.deleted.is_(False), other.c.is_answer.is_(False), other.c.path != "")
        .group_by(other.c.node_id, other.c.path)
        .having(func.count() > 1)
        .subquery("doubled")
    )
    return select(*DELIVERY_COLUMNS).join_from(
        paths, delivery, and_(_object.node_id == paths.c.node_id, _object.path == paths.c.path, _is_live)
    )


_doubled_of_nodes = RowQuery(["node_id"], _doubled)
_objects_of_nodes = RowQuery(
    ["node_id"],
    lambda wanted: (
        select(wanted.c.node_id, func.count(_object.node_id))
        .join_from(
            wanted,
            delivery,
            and_(_object.node_id == wanted.c.node_id, _object.is_answer.is_(False)),
            isouter=True,
        )
        .group_by(wanted.c.node_id)
    ),
)


def next_nodes(connection: Connection, after: str) -> tuple[str | None, list[str]]:
    """The last of the next nodes after one, None if these were all; and those of them that need mending."""
    node_ids = list(connection.execute(_next_nodes, {"after": after}).scalars())
    if not node_ids:
        return None, []
    found = connection.execute(_to_mend, {"after": after, "last": node_ids[-1]}).scalars()
    return (node_ids[-1] if len(node_ids) == NODES_PER_STEP else None), sorted(found)


def mend(connection: Connection, ledger: Ledger, at_ms: int) -> int:
    """Leaves one live object per path of the ledger's nodes, which are locked, and counts their objects; how
    many objects gave way."""
    wanted = [(node_id,) for node_id in ledger.nodes]
    paths: dict[tuple[str, str], list[ObjectRow]] = {}
    for values in _doubled_of_nodes.execute(connection, wanted):
        row = object_row(values)
        ledger.objects.setdefault(row.node_id, {})[row.key] = row
        paths.setdefault((row.node_id, row.path), []).append(row)
    for node_id, count in _objects_of_nodes.execute(connection, wanted):
        ledger.nodes[node_id].objects = count
        ledger.changed_nodes.add(node_id)
    return sum(ledger.unite(rows, at_ms) for rows in paths.values())

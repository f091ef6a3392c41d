"""Changes of sessions in SQL, in the order of their commits, whichever replica made them."""

from sqlalchemy import Connection, select, tuple_

from services.sessions.limits import Scope
from services.sessions.records import Changed
from services.sessions.rows import session_of
from services.sessions.schema import node_session, slot_count


def last_change(connection: Connection) -> int:
    """The number of the last change that was committed; 0 before the first."""
    count = slot_count.c
    statement = select(count.last_change).where(count.scope == Scope.TOTAL, count.place == "")
    return int(connection.execute(statement).scalar() or 0)


def changes_after(connection: Connection, number: int, node_id: str, most: int) -> list[Changed]:
    """Sessions as they are, whose last change stands behind that of (`number`, `node_id`)."""
    column = node_session.c
    statement = (
        select(node_session)
        .where(tuple_(column.change, column.node_id) > (number, node_id))
        .order_by(column.change, column.node_id)
        .limit(most)
    )
    return [Changed(int(row.change), session_of(row)) for row in connection.execute(statement)]

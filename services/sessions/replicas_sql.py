"""The processes of this service that share the database, in SQL."""

from sqlalchemy import Connection, delete, select, update

from services.sessions.records import Replica
from services.sessions.schema import sessions_replica
from services.sessions.upsert import insert_missing


def beat(connection: Connection, replica: Replica) -> None:
    """Says that a replica lives: its beats grow by one."""
    column = sessions_replica.c
    values = {
        "replica_id": replica.replica_id,
        "name": replica.name,
        "address": replica.address,
        "beats": 0,
    }
    connection.execute(insert_missing(connection, sessions_replica), values)
    connection.execute(
        update(sessions_replica).where(column.replica_id == replica.replica_id).values(beats=column.beats + 1)
    )


def replicas(connection: Connection) -> list[Replica]:
    """All on record, in order of their ids."""
    rows = connection.execute(select(sessions_replica).order_by(sessions_replica.c.replica_id))
    return [Replica(row.replica_id, row.name, row.address, int(row.beats)) for row in rows]


def drop_replica(connection: Connection, seen: Replica) -> None:
    """Drops a replica whose beats are still as they were seen."""
    column = sessions_replica.c
    connection.execute(
        delete(sessions_replica).where(column.replica_id == seen.replica_id, column.beats == seen.beats)
    )

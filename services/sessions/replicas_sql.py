"""The processes of this service that share the database, and those of enrolment that report to it, in SQL."""

from sqlalchemy import Connection, delete, func, select, update

from services.runtime.errors import Refused
from services.sessions.records import Replica
from services.sessions.schema import sessions_replica
from services.sessions.upsert import insert_missing

MAX_REPLICAS = 1000
"""On record. Those that are killed over and over leave a row each for three leases."""


def beat(connection: Connection, replica: Replica) -> None:
    """Says that a replica lives: its beats grow by one. Raises Refused for one more of another service than
    are kept; those of this one are always on record, since they also keep it."""
    column = sessions_replica.c
    beaten = (
        update(sessions_replica).where(column.replica_id == replica.replica_id).values(beats=column.beats + 1)
    )
    if connection.execute(beaten).rowcount:
        return
    if replica.service != "sessions" and _count(connection) >= MAX_REPLICAS:
        raise Refused(
            "TOO_MANY_INSTANCES",
            f"{MAX_REPLICAS} processes of sessions and enrolment are on record, and no more are kept: "
            "something starts them over and over",
        )
    values = {
        "replica_id": replica.replica_id,
        "name": replica.name,
        "address": replica.address,
        "beats": 1,
        "service": replica.service,
        "version": replica.version,
    }
    connection.execute(insert_missing(connection, sessions_replica), values)


def _count(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(sessions_replica)).scalar_one())


def replicas(connection: Connection) -> list[Replica]:
    """All on record, in order of their ids."""
    rows = connection.execute(select(sessions_replica).order_by(sessions_replica.c.replica_id))
    return [
        Replica(
            *(row.replica_id, row.name, row.address, int(row.beats)),
            *(row.service, row.version),
        )
        for row in rows
    ]


def drop_replica(connection: Connection, seen: Replica) -> None:
    """Drops a replica whose beats are still as they were seen."""
    column = sessions_replica.c
    connection.execute(
        delete(sessions_replica).where(column.replica_id == seen.replica_id, column.beats == seen.beats)
    )

"""INSERT that copes with rows that exist, in the words of the engine at hand."""

from sqlalchemy import Connection, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def upsert(connection: Connection, table: Table) -> Insert:
    """Inserts rows; those whose primary key exists are overwritten."""
    statement = _insert(connection, table)
    keys = [column.name for column in table.primary_key]
    values = {column.name: statement.excluded[column.name] for column in table.c if column.name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=values)


def insert_missing(connection: Connection, table: Table) -> Insert:
    """Inserts rows; those whose primary key exists stay as they are."""
    return _insert(connection, table).on_conflict_do_nothing()

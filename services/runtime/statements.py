"""Statements that write many rows of plain values, compiled once per engine.

SQLAlchemy's own many-row execution makes a dictionary and a processed copy of every row; on the
message path that costs more than the database does. SQLite runs the statement once per row;
PostgreSQL, where every statement is a round trip, gets all rows in one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    Table,
    and_,
    bindparam,
    delete,
    null,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Delete, Insert, Update

from services.runtime.rowsets import Values, given_columns

# What one statement of PostgreSQL's may carry in bodies; the rest goes into further ones.
MOST_BYTES = 16 * 1024 * 1024

_Given = Mapping[str, ColumnElement[Any]]


class ManyRows:
    """A statement for rows whose values stand in the order of `names`.

    The values go to the driver as they are, so they must be of types that need no conversion. Made by
    `insert_rows`, `update_rows` and `delete_rows`.
    """

    def __init__(
        self,
        table: Table,
        names: Mapping[str, str],
        per_row: Callable[[_Given], Insert | Update | Delete],
        at_once: Callable[[_Given], Insert | Update | Delete],
    ) -> None:
        self._names = tuple(names)
        self._types = {name: table.c[key].type for name, key in names.items()}
        self._per_row = per_row
        self._at_once = at_once
        self._body = next(
            (place for place, kind in enumerate(self._types.values()) if isinstance(kind, LargeBinary)), None
        )
        self._compiled: dict[str, tuple[str, Callable[[Values], Values] | None]] = {}

    def execute(self, connection: Connection, rows: list[Values]) -> None:
        """Does nothing for no rows."""
        if not rows:
            return
        engine = connection.dialect.name
        if engine not in self._compiled:
            self._compiled[engine] = self._compile(connection)
        text, reorder = self._compiled[engine]
        if engine == "postgresql":
            for portion in self._portions(rows):
                arrays = tuple(map(list, zip(*portion, strict=True)))
                connection.exec_driver_sql(text, reorder(arrays) if reorder else arrays)
        else:
            connection.exec_driver_sql(text, [reorder(row) for row in rows] if reorder else rows)

    def _portions(self, rows: list[Values]) -> Iterator[list[Values]]:
        if self._body is None:
            yield rows
            return
        begin = size = 0
        for place, row in enumerate(rows):
            size += len(row[self._body] or b"")
            if size > MOST_BYTES and place > begin:
                yield rows[begin:place]
                begin, size = place, len(row[self._body] or b"")
        yield rows[begin:]

    def _compile(self, connection: Connection) -> tuple[str, Callable[[Values], Values] | None]:
        if connection.dialect.name == "postgresql":
            columns = given_columns("given", self._types).c
            given: _Given = {name: columns[name] for name in self._names}
            compiled = self._at_once(given).compile(dialect=connection.dialect)
        else:
            given = {name: bindparam(name) for name in self._names}
            compiled = self._per_row(given).compile(dialect=connection.dialect, column_keys=list(self._names))
        order = getattr(compiled, "positiontup", None)
        assert order is not None, f"{connection.dialect.name} has no positional parameters"
        if tuple(order) == self._names:
            return str(compiled), None
        return str(compiled), itemgetter(*(self._names.index(name) for name in order))


def insert_rows(table: Table, *, overwrite: Sequence[str] = ()) -> ManyRows:
    """Inserts whole rows; where the primary key exists, the columns `overwrite` get the new values."""
    names = {column.name: column.name for column in table.c}

    def on_conflict(statement: Any) -> Insert:
        if not overwrite:
            return statement  # type: ignore[no-any-return]
        return statement.on_conflict_do_update(  # type: ignore[no-any-return]
            index_elements=[column.name for column in table.primary_key],
            set_={name: statement.excluded[name] for name in overwrite},
        )

    return ManyRows(
        table,
        names,
        lambda _: on_conflict(sqlite.insert(table)),
        lambda given: on_conflict(
            postgresql.insert(table).from_select(list(names), select(*(given[name] for name in names)))
        ),
    )


def update_rows(
    table: Table, keys: Sequence[str], changed: Sequence[str], cleared: Sequence[str] = ()
) -> ManyRows:
    """Sets the columns `changed` of rows, and `cleared` to null; a row's values are the changed ones, then
    its keys."""
    names = {**{name: name for name in changed}, **{f"_{key}": key for key in keys}}

    def statement(given: _Given) -> Update:
        return (
            update(table)
            .where(and_(*(table.c[key] == given[f"_{key}"] for key in keys)))
            .values({**{name: given[name] for name in changed}, **{name: null() for name in cleared}})
        )

    return ManyRows(table, names, statement, statement)


def delete_rows(table: Table, keys: Sequence[str]) -> ManyRows:
    """Deletes rows; a row's values are its keys."""

    def statement(given: _Given) -> Delete:
        return delete(table).where(and_(*(table.c[key] == given[f"_{key}"] for key in keys)))

    return ManyRows(table, {f"_{key}": key for key in keys}, statement, statement)

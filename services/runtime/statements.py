"""Statements that write many rows of plain values, compiled once per engine.

SQLAlchemy's own many-row execution makes a dictionary and a processed copy of every row; on the
message path that costs more than the database does. PostgreSQL gets one array per column; SQLite gets the
rows as VALUES, in portions: a statement per row would give up the interpreter lock once per row, and taking
it back from a busy event loop costs more than writing the row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    Table,
    and_,
    column,
    delete,
    null,
    select,
    tuple_,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Delete, Insert, Update

from services.runtime.array_text import array_text
from services.runtime.rowsets import Values, given_columns

# What one statement of PostgreSQL's may carry in bodies; the rest goes into further ones.
MOST_BYTES = 16 * 1024 * 1024
# Rows of one statement of SQLite's: few sizes, so that few statements have to be prepared.
_PORTIONS = (256, 64, 16, 4, 1)

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
        for_sqlite: Callable[[_Given], Insert | Update | Delete],
        for_postgresql: Callable[[_Given], Insert | Update | Delete],
    ) -> None:
        self._names = tuple(names)
        self._types = {name: table.c[key].type for name, key in names.items()}
        self._for_sqlite = for_sqlite
        self._for_postgresql = for_postgresql
        self._body = next(
            (place for place, kind in enumerate(self._types.values()) if isinstance(kind, LargeBinary)), None
        )
        self._sqlite: dict[int, str] = {}
        self._postgresql: tuple[str, Callable[[Values], Values]] | None = None

    def execute(self, connection: Connection, rows: list[Values]) -> None:
        """Does nothing for no rows."""
        if not rows:
            return
        if connection.dialect.name == "postgresql":
            self._execute_postgresql(connection, rows)
        else:
            self._execute_sqlite(connection, rows)

    def _execute_sqlite(self, connection: Connection, rows: list[Values]) -> None:
        if not self._sqlite:
            self._sqlite = self._compile_sqlite(connection)
        done, left = 0, len(rows)
        for size in _PORTIONS:
            while left >= size:
                flat = tuple(chain.from_iterable(rows[done : done + size]))
                connection.exec_driver_sql(self._sqlite[size], flat)
                done += size
                left -= size

    def _compile_sqlite(self, connection: Connection) -> dict[int, str]:
        """The statement for each number of rows."""
        given = values(*(column(name, kind) for name, kind in self._types.items()), name="given")
        columns = given.data([(0,) * len(self._names)]).cte("given").c
        statement = self._for_sqlite({name: columns[name] for name in self._names})
        text = str(statement.compile(dialect=connection.dialect, column_keys=list(self._names)))
        row = f"({', '.join('?' * len(self._names))})"
        head, found, tail = text.partition(f"VALUES {row}")
        assert found, f"a row of values should stand in: {text}"
        return {size: f"{head}VALUES {', '.join([row] * size)}{tail}" for size in _PORTIONS}

    def _execute_postgresql(self, connection: Connection, rows: list[Values]) -> None:
        if self._postgresql is None:
            self._postgresql = self._compile_postgresql(connection)
        text, reorder = self._postgresql
        for portion in self._portions(rows):
            columns = zip(*portion, strict=True)
            given = tuple(
                list(column) if place == self._body else array_text(column)
                for place, column in enumerate(columns)
            )
            connection.exec_driver_sql(text, reorder(given))

    def _compile_postgresql(self, connection: Connection) -> tuple[str, Callable[[Values], Values]]:
        columns = given_columns("given", self._types).c
        given: _Given = {name: columns[name] for name in self._names}
        compiled = self._for_postgresql(given).compile(dialect=connection.dialect)
        order = getattr(compiled, "positiontup", None)
        assert order is not None, "the driver takes positional parameters"
        if tuple(order) == self._names:
            return str(compiled), tuple
        return str(compiled), itemgetter(*(self._names.index(name) for name in order))

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

    def of_sqlite(given: _Given) -> Delete:
        wanted = select(*(given[f"_{key}"] for key in keys))
        return delete(table).where(tuple_(*(table.c[key] for key in keys)).in_(wanted))

    return ManyRows(table, {f"_{key}": key for key in keys}, of_sqlite, statement)

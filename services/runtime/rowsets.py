"""Rows of values as a table of a statement: what to join with, whatever their number.

PostgreSQL gets one array per column, written as text; SQLite one JSON text.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    FromClause,
    LargeBinary,
    Select,
    String,
    Text,
    bindparam,
    cast,
    column,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

from services.runtime.array_text import array_text

Values = tuple[Any, ...]


def given_columns(name: str, types: Mapping[str, TypeEngine[Any]]) -> FromClause:
    """A table `name` made of one parameter per column, each called as its column (PostgreSQL): what
    `array_text` makes of its values, or of a column of bytes the list of them."""
    # Text for every kind of string: a cast to one of a certain length would cut values off in silence.
    plain = {key: Text() if isinstance(kind, String) else kind for key, kind in types.items()}
    arrays = [
        bindparam(key, type_=ARRAY(kind))
        if isinstance(kind, LargeBinary)
        else cast(bindparam(key, type_=Text), ARRAY(kind))
        for key, kind in plain.items()
    ]
    columns = [column(key, kind) for key, kind in plain.items()]
    return func.unnest(*arrays).table_valued(*columns, name=name).render_derived()


def _given_json(name: str, columns: Sequence[str]) -> FromClause:
    each = func.json_each(bindparam("rows", type_=Text)).table_valued("value")
    picked = [
        func.json_extract(each.c.value, f"$[{index}]", type_=Text).label(key)
        for index, key in enumerate(columns)
    ]
    return select(*picked).cte(name)


class RowQuery:
    """A query that joins with rows of text values; built once per engine.

    `build` gets the table of those rows, which has the `columns`, and gives back the query. Rows come as
    sequences of plain values; truth values are 0 and 1 on SQLite.
    """

    def __init__(self, columns: Sequence[str], build: Callable[[FromClause], Select[Any]]) -> None:
        self._columns = tuple(columns)
        self._build = build
        self._postgresql: Select[Any] | None = None
        self._sqlite = ""
        self._parameters: list[tuple[str, Any]] = []
        self._is_json = True

    def execute(
        self, connection: Connection, rows: Collection[Sequence[str]], **values: Any
    ) -> Iterable[Any]:
        """Runs it for these rows; `values` are those of the query's other parameters."""
        if connection.dialect.name == "postgresql":
            if self._postgresql is None:
                self._postgresql = self._build(given_columns("wanted", dict.fromkeys(self._columns, Text())))
            arrays = zip(*rows, strict=True) if rows else ((),) * len(self._columns)
            return connection.execute(
                self._postgresql, dict(zip(self._columns, map(array_text, arrays), strict=True)) | values
            )
        if not self._sqlite:
            self._compile_sqlite(connection)
        given = msgspec.json.encode(list(rows)).decode()
        values["rows"] = given
        parameters = tuple(values.get(name, value) for name, value in self._parameters)
        found = connection.exec_driver_sql(self._sqlite, parameters)
        if not self._is_json:
            return found
        decoded: list[list[Any]] = msgspec.json.decode(found.scalar_one())
        return decoded

    def _compile_sqlite(self, connection: Connection) -> None:
        """The rows found come as one JSON text, but for bodies: each row fetched alone would give up the
        interpreter lock, and taking it back from a busy event loop costs more than the row."""
        query = self._build(_given_json("wanted", self._columns))
        self._is_json = not any(isinstance(column.type, LargeBinary) for column in query.selected_columns)
        if self._is_json:
            found = query.subquery("found")
            query = select(func.json_group_array(func.json_array(*found.c)))
        compiled = query.compile(dialect=connection.dialect)
        self._sqlite = str(compiled)
        self._parameters = [(name, compiled.params[name]) for name in compiled.positiontup or ()]

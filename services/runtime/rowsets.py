"""Rows of values as a table of a statement: what to join with, whatever their number.

PostgreSQL gets one array per column, SQLite one JSON text.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    FromClause,
    Select,
    String,
    Text,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

Values = tuple[Any, ...]


def given_columns(name: str, types: Mapping[str, TypeEngine[Any]]) -> FromClause:
    """A table `name` made of one array parameter per column, each called as its column (PostgreSQL)."""
    # Text for every kind of string: a cast to one of a certain length would cut values off in silence.
    plain = {key: Text() if isinstance(kind, String) else kind for key, kind in types.items()}
    arrays = [bindparam(key, type_=ARRAY(kind)) for key, kind in plain.items()]
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

    `build` gets the table of those rows, which has the `columns`, and gives back the query.
    """

    def __init__(self, columns: Sequence[str], build: Callable[[FromClause], Select[Any]]) -> None:
        self._columns = tuple(columns)
        self._build = build
        self._built: dict[str, Select[Any]] = {}

    def execute(self, connection: Connection, rows: Collection[Sequence[str]]) -> Iterable[Any]:
        """Runs it for these rows."""
        engine = connection.dialect.name
        query = self._built.get(engine)
        if engine == "postgresql":
            if query is None:
                query = self._built[engine] = self._build(
                    given_columns("wanted", dict.fromkeys(self._columns, Text()))
                )
            arrays = zip(*rows, strict=True) if rows else ((),) * len(self._columns)
            return connection.execute(query, dict(zip(self._columns, map(list, arrays), strict=True)))
        if query is None:
            query = self._built[engine] = self._build(_given_json("wanted", self._columns))
        return connection.execute(query, {"rows": msgspec.json.encode(list(rows)).decode()})

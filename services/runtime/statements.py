"""Statements for many rows of plain values, compiled once per engine.

SQLAlchemy's own many-row execution makes a dictionary and a processed copy of every row; on the
message path that costs more than the database does.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.sql.dml import Delete, Insert, Update

Values = tuple[Any, ...]


class ManyRows:
    """`statement` executed once per row; `parameters` names the values of a row in their order.

    The values go to the driver as they are, so they must be of types that need no conversion.
    """

    def __init__(self, statement: Insert | Update | Delete, parameters: Sequence[str]) -> None:
        self._statement = statement
        self._parameters = tuple(parameters)
        self._compiled: dict[str, tuple[str, Callable[[Values], Values] | None]] = {}

    def execute(self, connection: Connection, rows: list[Values]) -> None:
        """Does nothing for no rows."""
        if not rows:
            return
        name = connection.dialect.name
        if name not in self._compiled:
            self._compiled[name] = self._compile(connection)
        text, reorder = self._compiled[name]
        connection.exec_driver_sql(text, rows if reorder is None else [reorder(row) for row in rows])

    def _compile(self, connection: Connection) -> tuple[str, Callable[[Values], Values] | None]:
        compiled = self._statement.compile(dialect=connection.dialect, column_keys=list(self._parameters))
        order = getattr(compiled, "positiontup", None)
        assert order is not None, f"{connection.dialect.name} has no positional parameters"
        if tuple(order) == self._parameters:
            return str(compiled), None
        return str(compiled), itemgetter(*(self._parameters.index(name) for name in order))

"""Many values as one bound parameter: a row set to join with, in statements that are built once."""

from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import CTE, Text, bindparam, func, select


def wanted_rows(name: str, columns: Sequence[str]) -> CTE:
    """A CTE `name` with text `columns` (SQLite). Execute with `row_parameters` of the same name."""
    each = func.json_each(bindparam(f"{name}_rows", type_=Text)).table_valued("value")
    picked = [
        func.json_extract(each.c.value, f"$[{index}]", type_=Text).label(column)
        for index, column in enumerate(columns)
    ]
    return select(*picked).cte(name)


def row_parameters(name: str, rows: Collection[Sequence[str]]) -> dict[str, str]:
    """The bound parameter that carries the rows."""
    return {f"{name}_rows": msgspec.json.encode(list(rows)).decode()}

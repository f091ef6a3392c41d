"""Many values as one bound parameter: a row set to join with, on every engine the hub knows."""

from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import CTE, Text, bindparam, func, select


def wanted_rows(name: str, columns: Sequence[str], rows: Collection[Sequence[str]]) -> CTE:
    """A CTE `name` with text `columns`; one statement text whatever the number of rows (SQLite)."""
    payload = msgspec.json.encode(list(rows)).decode()
    each = func.json_each(bindparam(f"{name}_rows", payload, type_=Text)).table_valued("value")
    picked = [
        func.json_extract(each.c.value, f"$[{index}]", type_=Text).label(column)
        for index, column in enumerate(columns)
    ]
    return select(*picked).cte(name)

"""Statements of many rows: `services.runtime.statements`."""

import pytest
from sqlalchemy import Column, LargeBinary, MetaData, String, Table, create_engine, event, func, select

from services.runtime import statements
from services.runtime.statements import insert_rows

table = Table("x", MetaData(), Column("id", String(20), primary_key=True), Column("body", LargeBinary))


@pytest.mark.parametrize(("rows", "portions"), [(1, [1]), (700, [256, 256, 64, 64] + [16] * 3 + [4] * 3)])
def test_a_statement_of_sqlites_has_so_many_rows(rows: int, portions: list[int]) -> None:
    """And all rows are there."""
    engine = create_engine("sqlite://")
    table.metadata.create_all(engine)
    sizes: list[int] = []
    with engine.begin() as connection:

        @event.listens_for(engine, "before_cursor_execute")
        def seen(_: object, __: object, text: str, parameters: tuple[object, ...], *___: object) -> None:
            sizes.append(len(parameters) // 2)

        insert_rows(table).execute(connection, [(f"{number}", b"1") for number in range(rows)])
        assert sizes == portions
        assert connection.execute(select(func.count()).select_from(table)).scalar_one() == rows
    engine.dispose()


def test_a_statement_of_postgresqls_carries_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row in any case; in order, and none is left out."""
    monkeypatch.setattr(statements, "MOST_BYTES", 100)
    rows = [(f"{number}", b"x" * size) for number, size in enumerate((40, 60, 1, 300, 99, 1, 1, 0))]
    rows.append(("no body", None))  # type: ignore[arg-type]
    portions = list(insert_rows(table)._portions(rows))
    assert [[name for name, _ in portion] for portion in portions] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["4", "5"],
        ["6", "7", "no body"],
    ]

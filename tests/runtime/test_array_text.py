"""Columns as the text of arrays: `services.runtime.array_text` and what PostgreSQL reads in it."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from services.runtime.array_text import array_text
from services.runtime.errors import StoreRefused
from services.runtime.store_postgresql import PostgresStore
from tests.support.postgres import Databases


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], "{}"),
        ([1, -2, None], "{1,-2,null}"),
        ([True, False], "{true,false}"),
        (["a", "", None, "null", "{b,c}", "ü"], '{"a","",null,"null","{b,c}","ü"}'),
        (['say "a"', "back\\slash", None, "two\nlines"], '{"say \\"a\\"","back\\\\slash",null,"two\nlines"}'),
    ],
)
def test_values_become_the_text_of_an_array(values: list[object], wanted: str) -> None:
    assert array_text(values) == wanted


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        array_text(["a", "\ud800"])


@pytest.fixture
async def store(databases: Databases) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(await asyncio.to_thread(databases.empty))
    yield store
    await store.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    )
)
async def test_postgresql_reads_the_same_strings(store: PostgresStore, values: list[str | None]) -> None:
    read = text("SELECT unnest(CAST(CAST(:given AS text) AS text[]))")
    found = await store.read(lambda c: list(c.execute(read, {"given": array_text(values)}).scalars()))
    assert found == values


@pytest.mark.parametrize(
    ("kind", "values"),
    [("bigint[]", [2**63]), ("bigint[]", ["many"]), ("text[]", ["a\0b"]), ("int[]", [True])],
)
async def test_values_that_a_column_cannot_hold_are_refused(
    store: PostgresStore, kind: str, values: list[object]
) -> None:
    read = text(f"SELECT CAST(CAST(:given AS text) AS {kind})")
    with pytest.raises(StoreRefused):
        await store.read(lambda c: c.execute(read, {"given": array_text(values)}).scalar())

"""The table of uploads."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from inspect import Parameter, Signature
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from services.dispatcher.outbox.schema import SCHEMA, uploads
from services.dispatcher.upstream.uploads import (
    LoadWanted,
    StoredUploads,
    UploadRow,
    delete_uploads,
    load_uploads,
    store_uploads,
    stored_uploads,
)
from services.runtime.errors import StoreRefused
from services.runtime.store import Store, open_store
from tests.support.postgres import Databases
from tests.support.upstream import upload

TABLE = uploads


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = f"sqlite:///{tmp_path / 'uploads.db'}"
    if request.param == "postgresql":
        databases: Databases = request.getfixturevalue("databases")
        url = await databases.fresh(SCHEMA)
    opened = await open_store(url, SCHEMA)
    yield opened
    await opened.close()


def in_transaction(test: Callable[[Connection], None]) -> Callable[[Store], Awaitable[None]]:
    """Makes a test of what is done over a connection one of a store of each engine."""

    @wraps(test)
    async def run(store: Store) -> None:
        await store.write(test)

    run.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter("store", Parameter.POSITIONAL_OR_KEYWORD)]
    )
    return run


def row(node_id: str, n: int, number: int | None = None, size: int = 10) -> UploadRow:
    return UploadRow(node_id, n, 7, size, upload(n if number is None else number))


def wanted(node_id: str = "a", after: int = 0, limit: int = 100, most_bytes: int = 1 << 30) -> LoadWanted:
    return LoadWanted(node_id, after, limit, most_bytes)


@in_transaction
def test_rows_come_back_as_they_were_stored(connection: Connection) -> None:
    rows = [row("a", 1), row("b", 2), row("a", 3)]
    assert store_uploads(connection, TABLE, rows) == {("a", 1), ("b", 2), ("a", 3)}
    loaded = load_uploads(connection, TABLE, wanted())
    assert loaded.rows == [rows[0], rows[2]]
    assert (loaded.is_all, loaded.reached) == (True, 3)
    assert store_uploads(connection, TABLE, []) == set()


@in_transaction
def test_a_message_id_is_stored_once_per_node(connection: Connection) -> None:
    """C31: an edge that repeats an upload does not store it twice."""
    store_uploads(connection, TABLE, [row("a", 1, number=5)])
    again = [row("a", 2, number=5), row("a", 3, number=6), row("a", 4, number=6), row("b", 5, number=5)]
    assert store_uploads(connection, TABLE, again) == {("a", 3), ("b", 5)}
    assert [one.n for one in load_uploads(connection, TABLE, wanted()).rows] == [1, 3]


@in_transaction
def test_a_commit_that_is_run_again_counts_its_own_rows_as_stored(connection: Connection) -> None:
    rows = [row("a", 1), row("a", 2)]
    store_uploads(connection, TABLE, rows)
    assert store_uploads(connection, TABLE, rows) == {("a", 1), ("a", 2)}


@in_transaction
def test_loading_stops_at_the_limit_and_at_the_size(connection: Connection) -> None:
    store_uploads(connection, TABLE, [row("a", n, size=100) for n in range(1, 6)])
    by_limit = load_uploads(connection, TABLE, wanted(after=1, limit=2))
    assert ([one.n for one in by_limit.rows], by_limit.is_all, by_limit.reached) == ([2, 3], False, 3)
    by_size = load_uploads(connection, TABLE, wanted(most_bytes=150))
    assert ([one.n for one in by_size.rows], by_size.is_all) == ([1, 2], False)
    assert [one.n for one in load_uploads(connection, TABLE, wanted(most_bytes=0)).rows] == [1]
    rest = load_uploads(connection, TABLE, wanted(after=4, limit=2))
    assert ([one.n for one in rest.rows], rest.is_all) == ([5], True)


@in_transaction
def test_nothing_to_load_is_said(connection: Connection) -> None:
    loaded = load_uploads(connection, TABLE, wanted("nobody", after=4))
    assert (loaded.rows, loaded.is_all, loaded.reached) == ([], True, 4)


@in_transaction
def test_a_row_that_is_no_message_is_reported_and_skipped(connection: Connection) -> None:
    """C29: bad database content harms nothing else."""
    store_uploads(connection, TABLE, [row("a", n) for n in (1, 2, 3)])
    connection.execute(update(TABLE).where(TABLE.c.n == 2).values(message=b"\xff\xff\xff"))
    loaded = load_uploads(connection, TABLE, wanted())
    assert [one.n for one in loaded.rows] == [1, 3]
    assert loaded.unreadable == [2]


@in_transaction
def test_deleting_what_is_gone_is_no_error(connection: Connection) -> None:
    store_uploads(connection, TABLE, [row("a", 1), row("a", 2), row("b", 3)])
    delete_uploads(connection, TABLE, [])
    for _ in range(2):
        delete_uploads(connection, TABLE, [("a", 1), ("b", 99)])
    assert stored_uploads(connection, TABLE) == StoredUploads(2, 3, {"a": 2, "b": 3})


@in_transaction
def test_an_empty_table_counts_nothing(connection: Connection) -> None:
    assert stored_uploads(connection, TABLE) == StoredUploads(0, 0, {})


@in_transaction
def test_a_number_that_is_taken_by_another_upload_is_no_repetition(connection: Connection) -> None:
    """C31: two dispatchers that gave a node's uploads one number; neither is answered as stored and lost."""
    store_uploads(connection, TABLE, [row("a", 1, number=5)])
    with pytest.raises(StoreRefused, match="upload 1 of node a is another message"):
        store_uploads(connection, TABLE, [row("a", 1, number=6)])

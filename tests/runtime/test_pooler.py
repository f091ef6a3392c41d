"""Transactions through a real PgBouncer in transaction mode, which lends its connections for one each."""

import asyncio
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest
from structlog.testing import capture_logs

from services.runtime import store_postgresql
from services.runtime.errors import StoreBusy, StoreUnavailable
from services.runtime.store_postgresql import PostgresStore
from tests.support.pgbouncer import running_pgbouncer
from tests.support.postgres import Databases
from tests.support.store_work import run


@pytest.fixture
async def url(databases: Databases) -> str:
    return await asyncio.to_thread(databases.empty)


@pytest.fixture
async def pooled(url: str) -> AsyncIterator[str]:
    """The same by a pooler that has two connections to the server."""
    async with running_pgbouncer(url, default_pool_size=2) as found:
        yield found


async def test_stores_share_the_connections_of_a_pooler(pooled: str) -> None:
    """More transactions at a time than there are connections: each statement finds what it prepared."""
    stores = [PostgresStore(pooled) for _ in range(3)]
    await stores[0].write(run("CREATE TABLE item (n int)"))
    await asyncio.gather(*(store.write(run("INSERT INTO item VALUES (1)")) for store in stores * 3))
    assert await stores[0].read(run("SELECT sum(n) FROM item")) == [9]
    assert await stores[1].read(run("SELECT count(DISTINCT pg_backend_pid()) FROM item")) == [1]
    for store in stores:
        await store.close()


async def test_time_limits_hold_in_each_transaction(pooled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever had the connection before, with other limits or none."""
    monkeypatch.setattr(store_postgresql, "LOCK_SECONDS", 0.3)
    store, patient = PostgresStore(pooled, statement_seconds=0.5), PostgresStore(pooled)
    await store.write(run("CREATE TABLE item (n int)"))
    await store.write(run("INSERT INTO item VALUES (0)"))
    for _ in range(3):
        assert await patient.write(run("SELECT 1 FROM pg_sleep(0.7)")) == [1]
        with pytest.raises(StoreUnavailable, match="statement timeout"):
            await store.write(run("SELECT pg_sleep(5)"))
    holder = await asyncpg.connect(pooled)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("UPDATE item SET n = 7")
    with pytest.raises(StoreBusy):
        await store.write(run("UPDATE item SET n = 8"))
    await transaction.rollback()
    await holder.close()
    await patient.close()
    await store.close()


async def test_what_stops_within_a_transaction_holds_its_rows_for_a_while_only(
    url: str, pooled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_postgresql, "IDLE_SECONDS", 0.5)
    frozen, store = PostgresStore(pooled), PostgresStore(url)
    await store.write(run("CREATE TABLE held (n int)"))
    await store.write(run("INSERT INTO held VALUES (1)"))
    connection = await frozen._connect()
    try:
        await connection.transaction().start()
        await connection.execute("UPDATE held SET n = 2")
        began = time.monotonic()
        await store.write(run("UPDATE held SET n = 3"))
        assert time.monotonic() - began > 0.3
    finally:
        connection.terminate()
    assert await store.read(run("SELECT n FROM held")) == [3]
    await store.close()
    await frozen.close()


async def test_the_log_says_once_by_what_the_limits_hold(url: str, pooled: str) -> None:
    for reached in (url, pooled):
        store = PostgresStore(reached)
        with capture_logs() as said:
            await asyncio.gather(*(store.read(run("SELECT pg_sleep(0.05)")) for _ in range(2)))
        await store.close()
        assert [(line["event"], line["set_by"], line["statement_timeout"]) for line in said] == [
            ("database.time_limits", "transaction", "5000")
        ]


async def test_a_pooler_that_keeps_no_prepared_statements_is_named(url: str) -> None:
    """As releases before 1.21 do; nobody is left with the words of the driver."""
    async with running_pgbouncer(url, default_pool_size=2, max_prepared_statements=0) as pooled:
        stores = [PostgresStore(pooled) for _ in range(2)]
        with pytest.raises(StoreUnavailable, match=r"does not keep prepared statements; .* PgBouncer 1\.21"):
            for _ in range(20):
                await asyncio.gather(*(store.write(run("SELECT 1")) for store in stores * 2))
        for store in stores:
            await store.close()

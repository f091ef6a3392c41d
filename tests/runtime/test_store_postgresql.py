"""Transactions on PostgreSQL: `services.runtime.store_postgresql` against real servers."""

import asyncio
import os
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from demo.postgres import PostgresServer
from services.runtime import store_postgresql
from services.runtime.database_source import DatabaseSource
from services.runtime.errors import StoreBusy, StoreRefused, StoreUnavailable
from services.runtime.store_postgresql import PostgresStore
from tests.support.postgres import SURVIVES_KILL, Databases, reachable_folder, running_pair
from tests.support.processes import eventually
from tests.support.store_work import run


@pytest.fixture
async def url(databases: Databases) -> str:
    return await asyncio.to_thread(databases.empty)


@pytest.fixture
async def stores(url: str) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    """Two processes' stores over one database with a table `item (id, n)` of two rows."""
    one, other = PostgresStore(url), PostgresStore(url)
    await one.write(run("CREATE TABLE item (id text PRIMARY KEY, n bigint NOT NULL CHECK (n < 1000))"))
    await one.write(run("INSERT INTO item VALUES ('a', 0), ('b', 0)"))
    yield one, other
    await one.close()
    await other.close()


async def numbers(store: PostgresStore) -> object:
    return await store.read(run("SELECT n FROM item ORDER BY id"))


async def test_transactions_that_wait_in_a_circle_both_succeed(
    stores: tuple[PostgresStore, PostgresStore],
) -> None:
    """The victim of a deadlock is run again as a whole; nobody hears of it."""
    runs = 0

    def both(first: str, second: str) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            nonlocal runs
            runs += 1
            add = text("UPDATE item SET n = n + 1 WHERE id = :id")
            connection.execute(add, {"id": first})
            connection.execute(text("SELECT pg_sleep(0.3)"))
            connection.execute(add, {"id": second})

        return work

    one, other = stores
    await asyncio.gather(numbers(one), numbers(other))  # both are connected
    await asyncio.gather(one.write(both("a", "b")), other.write(both("b", "a")))
    assert await numbers(one) == [2, 2]
    assert runs == 3


async def test_two_that_make_the_same_row_both_succeed(stores: tuple[PostgresStore, PostgresStore]) -> None:
    def count(connection: Connection) -> None:
        found = connection.execute(text("SELECT n FROM item WHERE id = 'new' FOR UPDATE")).scalar()
        connection.execute(text("SELECT pg_sleep(0.1)"))
        if found is None:
            connection.execute(text("INSERT INTO item VALUES ('new', 1)"))
        else:
            connection.execute(text("UPDATE item SET n = n + 1 WHERE id = 'new'"))

    await asyncio.gather(*(store.write(count) for store in stores))
    assert await stores[0].read(run("SELECT n FROM item WHERE id = 'new'")) == [2]


async def test_a_value_that_the_database_refuses_is_told_apart(
    stores: tuple[PostgresStore, PostgresStore],
) -> None:
    """C44: repeating it would not help, and other rows can be written."""
    store, _ = stores
    for statement, values in (
        ("INSERT INTO item VALUES ('c', 1000)", {}),
        ("INSERT INTO item VALUES ('c', NULL)", {}),
        ("INSERT INTO item VALUES (CAST(:id AS text), 1)", {"id": "nul\0"}),
        ("INSERT INTO item VALUES ('c', CAST(:n AS bigint))", {"n": 2**64}),
        # More than an entry of an index may be, which is another class of errors.
        ("INSERT INTO item VALUES (CAST(:id AS text), 1)", {"id": random.Random(1).randbytes(4000).hex()}),
    ):
        with pytest.raises(StoreRefused):
            await store.write(run(statement, **values))
    assert await numbers(store) == [0, 0]


async def test_a_row_that_stays_locked_is_told_apart(
    url: str, stores: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_postgresql, "LOCK_SECONDS", 0.2)
    impatient = PostgresStore(url)
    holder = await asyncpg.connect(url)
    async with holder.transaction():
        await holder.execute("UPDATE item SET n = 7 WHERE id = 'a'")
        with pytest.raises(StoreBusy, match=r"locked for 0\.2 s"):
            await impatient.write(run("UPDATE item SET n = 8 WHERE id = 'a'"))
        await impatient.write(run("UPDATE item SET n = 8 WHERE id = 'b'"))
    await holder.close()
    assert await numbers(impatient) == [7, 8]
    await impatient.close()


async def test_rows_are_found_by_an_index_though_few_keys_have_most_of_them(url: str) -> None:
    """By the figures that the planner keeps, twenty keys of sixty mean a third of the rows; it would read the
    whole table for the few that there are, with rows of others locked."""
    store = PostgresStore(url)
    await store.write(run("CREATE TABLE item (key text, id int, PRIMARY KEY (key, id))"))
    await store.write(run("INSERT INTO item SELECT 'busy-' || i % 60, i FROM generate_series(1, 60000) i"))
    await store.write(run("INSERT INTO item SELECT 'seldom-' || i, i FROM generate_series(1, 20) i"))
    await store.write(run("ANALYZE item"))
    seldom = ",".join(f"seldom-{number}" for number in range(1, 21))
    gone = f"unnest(CAST('{{{seldom}}}' AS text[])) AS gone(key)"
    asked = f"DELETE FROM item USING {gone} WHERE item.key = gone.key"
    plan = str(await store.write(run(f"EXPLAIN {asked}")))
    assert "Index Scan" in plan
    assert "Seq Scan" not in plan
    without = await asyncpg.connect(url)
    assert "Seq Scan on item" in str(await without.fetch(f"EXPLAIN {asked}"))
    await without.close()
    await store.close()


async def test_a_read_sees_one_instant_and_writes_nothing(
    stores: tuple[PostgresStore, PostgresStore],
) -> None:
    reader, writer = stores
    loop = asyncio.get_running_loop()
    wrote: list[asyncio.Task[object]] = []

    def twice(connection: Connection) -> tuple[object, object]:
        first = connection.execute(text("SELECT n FROM item WHERE id = 'a'")).scalar()
        wrote.append(loop.create_task(writer.write(run("UPDATE item SET n = 5"))))
        connection.execute(text("SELECT pg_sleep(0.3)"))
        return first, connection.execute(text("SELECT n FROM item WHERE id = 'a'")).scalar()

    assert await reader.read(twice) == (0, 0)
    await asyncio.gather(*wrote)
    assert await numbers(reader) == [5, 5]
    with pytest.raises(StoreUnavailable, match="read-only transaction"):
        await reader.read(run("UPDATE item SET n = 6"))
    await reader.write(run("UPDATE item SET n = 7"))


async def test_a_cancelled_caller_leaves_no_half_transaction(
    stores: tuple[PostgresStore, PostgresStore],
) -> None:
    store, other = stores
    caller = asyncio.create_task(store.write(run("UPDATE item SET n = 3 WHERE pg_sleep(0.2) IS NOT NULL")))
    await asyncio.sleep(0.05)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await store.close()
    assert await numbers(other) == [3, 3]


async def test_a_closed_store_opens_nothing_again(url: str) -> None:
    """Invariant 6: whoever comes late is refused instead of leaving a connection behind."""
    store = PostgresStore(url)
    running = asyncio.create_task(store.write(run("SELECT pg_sleep(0.1)")))
    await asyncio.wait([running], timeout=0.02)
    await store.close()
    assert running.done()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        await store.read(run("SELECT 1"))


async def test_a_statement_that_takes_too_long_is_given_up(url: str) -> None:
    store = PostgresStore(url, statement_seconds=0.2)
    with pytest.raises(StoreUnavailable, match="statement timeout"):
        await store.write(run("SELECT pg_sleep(5)"))
    await store.close()


async def test_a_server_that_hangs_is_given_up_and_others_go_on(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped backend answers nothing, not even to a timeout of its own; a lease is longer than that."""
    monkeypatch.setattr(store_postgresql, "TRANSACTION_SECONDS", 0.5)
    store = PostgresStore(url, statement_seconds=0.5)
    stopped: list[int] = []

    def hang(connection: Connection) -> None:
        stopped.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        os.kill(stopped[0], signal.SIGSTOP)
        connection.execute(text("SELECT 1"))

    began = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            await store.write(hang)
        assert time.monotonic() - began < 5
        assert await store.write(run("SELECT pg_backend_pid()")) != stopped
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        await store.close()


async def test_who_waits_for_a_process_that_stands_still_gets_its_rows(
    stores: tuple[PostgresStore, PostgresStore],
) -> None:
    """A frozen dispatcher must keep neither the next owner of its nodes nor publishers of others from their
    rows: they have them before their own wait for a lock ends, without an error."""
    frozen, other = stores
    connection = await frozen._connect()
    try:
        await connection.execute("BEGIN")
        await connection.execute("UPDATE item SET n = 2 WHERE id = 'a'")
        began = time.monotonic()
        await other.write(run("UPDATE item SET n = 3 WHERE id = 'a'"))
        assert time.monotonic() - began > 0.5  # it did wait, and not until its own limit: that is StoreBusy
    finally:
        connection.terminate()
    assert await numbers(other) == [3, 0]


@pytest.mark.parametrize("waiting_for", ["nothing", "an answer"])
async def test_the_transaction_of_a_process_that_stood_still_is_run_again(
    url: str, waiting_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has ended it before its COMMIT, so nothing of it was written. Nobody hears."""
    monkeypatch.setattr(store_postgresql, "IDLE_SECONDS", 0.3)
    store = PostgresStore(url)
    await store.write(run("CREATE TABLE item (id text, n int)"))
    await store.write(run("INSERT INTO item VALUES ('a', 1)"))
    await stood_still(store, waiting_for)
    assert await numbers(store) == [12]
    await store.close()


async def stood_still(store: PostgresStore, waiting_for: str) -> None:
    """Adds 11 to the rows of `item` in a transaction that is in the middle of its work when this process
    stands still for so long that the server ends it."""
    runs = 0

    def work(connection: Connection) -> None:
        nonlocal runs
        runs += 1
        connection.execute(text("UPDATE item SET n = n + 1"))
        wait = text("SELECT pg_sleep(CAST(:seconds AS float8))")
        connection.execute(wait, {"seconds": 0.0})  # it is prepared
        if runs == 1 and waiting_for == "nothing":
            time.sleep(1)
        elif runs == 1:
            asyncio.get_running_loop().call_soon(time.sleep, 1)
            connection.execute(wait, {"seconds": 0.1})
        connection.execute(text("UPDATE item SET n = n + 10"))

    await store.write(work)
    assert runs == 2


async def test_a_connection_that_is_lost_at_once_is_told_at_once(
    stores: tuple[PostgresStore, PostgresStore],
) -> None:
    """Of a server that goes, callers hear as before: they may ask elsewhere."""
    store, _ = stores
    runs = 0

    def work(connection: Connection) -> None:
        nonlocal runs
        runs += 1
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(StoreUnavailable):
        await store.write(work)
    assert runs == 1
    assert await numbers(store) == [0, 0]


async def test_nothing_is_repeated_that_may_have_been_committed(
    stores: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost while COMMIT is under way, however long that took, is told."""
    monkeypatch.setattr(store_postgresql, "IDLE_SECONDS", 0.0)
    store, other = stores
    runs = 0

    def work(connection: Connection) -> None:
        nonlocal runs
        runs += 1
        connection.execute(
            text(
                "CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON item DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION ends()"
            )
        )
        connection.execute(text("UPDATE item SET n = 5"))

    with pytest.raises(StoreUnavailable):
        await store.write(work)
    assert runs == 1
    assert await numbers(other) == [0, 0]


async def test_no_more_connections_than_the_pool_has(url: str) -> None:
    """Bounded: a crowd of transactions waits for the pool, it does not crowd the server."""
    store = PostgresStore(url)
    await asyncio.gather(*(store.write(run("SELECT pg_sleep(0.02)")) for _ in range(60)))
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    assert await store.read(run(count)) == [store_postgresql.POOL_CONNECTIONS]
    await store.close()


async def test_a_server_that_comes_back_is_used_again() -> None:
    """C25: while it is away every call says so; afterwards the same store goes on by itself, and what it
    answered for is there."""
    with reachable_folder() as folder:
        server = PostgresServer(folder / "server", settings=SURVIVES_KILL)
        server.create()
        server.start()
        server.wait_ready()
        store = PostgresStore(server.url())
        try:
            await store.write(run("CREATE TABLE item (n int)"))
            await asyncio.gather(*(store.read(run("SELECT 1")) for _ in range(5)))
            await asyncio.to_thread(server.stop)
            for call in (store.write, store.read):
                with pytest.raises(StoreUnavailable):
                    await call(run("SELECT 1"))
            server.start()
            await asyncio.to_thread(server.wait_ready)
            await store.write(run("INSERT INTO item VALUES (0)"))
            answered = {0}
            for kill in range(1, 4):
                # A restart that nobody noticed: one call finds out for all connections.
                await asyncio.gather(*(store.read(run("SELECT 1")) for _ in range(5)))
                await asyncio.to_thread(server.kill)
                server.start()
                await asyncio.to_thread(server.wait_ready)
                failed = set()
                for number in range(10 * kill, 10 * kill + 10):
                    try:
                        await store.write(run("INSERT INTO item VALUES (:n)", n=number))
                        answered.add(number)
                    except StoreUnavailable:
                        failed.add(number)
                assert len(failed) <= 1
                assert await store.read(run("SELECT n FROM item ORDER BY n")) == sorted(answered)
        finally:
            await store.close()
            server.stop()


async def test_a_standby_that_is_promoted_has_everything_and_is_found() -> None:
    """C35: the primary is killed under load. Nothing committed is lost, and the same store writes to the
    new primary within 10 s of its promotion."""
    with running_pair() as (primary, standby):
        store = PostgresStore(primary.url("postgres", standby))
        try:
            await store.write(run("CREATE TABLE item (n int PRIMARY KEY)"))
            committed: list[int] = []
            going = True

            async def write(first: int) -> None:
                number = first
                while going:
                    number += 10
                    try:
                        await store.write(run("INSERT INTO item VALUES (:n)", n=number))
                        committed.append(number)
                    except StoreUnavailable:
                        await asyncio.sleep(0.05)

            writers = [asyncio.create_task(write(first)) for first in range(6)]
            await eventually(lambda: len(committed) >= 200)
            await asyncio.to_thread(primary.kill)
            before = list(committed)
            await asyncio.to_thread(standby.promote)
            await eventually(lambda: len(committed) >= len(before) + 100, 10, "the store goes on")
            going = False
            await asyncio.gather(*writers)
            found = await store.read(run("SELECT n FROM item"))
            assert isinstance(found, list)
            assert set(committed) <= set(found)
        finally:
            await store.close()


async def test_a_former_primary_that_nobody_stopped_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """C35: it takes connections and writes, and waits for a standby that is none any more. What it did not
    answer for is not counted; the store goes on with the new primary after one transaction's time."""
    monkeypatch.setattr(store_postgresql, "TRANSACTION_SECONDS", 3.0)
    with running_pair() as (primary, standby):
        store = PostgresStore(primary.url("postgres", standby), statement_seconds=2.9)
        try:
            await store.write(run("CREATE TABLE item (n int PRIMARY KEY)"))
            await store.write(run("INSERT INTO item VALUES (0)"))
            await asyncio.to_thread(standby.promote)
            for number in (1, 2):
                # All at once: one of them finds out for the others, and none leads back.
                calls = (
                    store.write(run("INSERT INTO item VALUES (:n)", n=10 * number + n)) for n in range(5)
                )
                done = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(one) for one in done} == {StoreUnavailable if number == 1 else type(None)}
            found = await store.read(run("SELECT n FROM item ORDER BY n"))
            assert found == [0, *range(20, 25)]
            assert await asyncio.to_thread(standby.sql, "SELECT count(*) FROM item") == "6"
        finally:
            await store.close()


async def test_a_standby_is_never_written_to() -> None:
    """A URL that names the standby first, or alone."""
    with running_pair() as (primary, standby):
        store = PostgresStore(standby.url("postgres", primary))
        await store.write(run("CREATE TABLE item (n int)"))
        await store.close()
        alone = PostgresStore(standby.url())
        with pytest.raises(StoreUnavailable, match="no host takes writes"):
            await alone.write(run("INSERT INTO item VALUES (1)"))
        await alone.close()


async def test_a_changed_password_is_taken_from_the_file_when_connections_fail(
    databases: Databases, url: str, tmp_path: Path
) -> None:
    """No restart, and no sooner than needed; what is no URL changes nothing."""
    role, database = f"rotated_{uuid.uuid4().hex[:8]}", url.rpartition("/")[2]
    server, file = databases.server, tmp_path / "url"
    written = f"postgresql://{role}:{{}}@127.0.0.1:{server.port}/{database}"

    async def sql(statement: str) -> None:
        await asyncio.to_thread(server.sql, statement)

    async def cut() -> None:
        await sql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{role}'")

    await sql(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
    file.write_text(written.format("first"))
    source = DatabaseSource("", file)
    store = PostgresStore(source.read(), reread=source.read)
    one = run("SELECT 1")
    try:
        await store.write(one)
        await sql(f"ALTER ROLE {role} PASSWORD 'second'")
        assert await store.write(one) == [1], "open connections stay"
        await cut()
        with pytest.raises(StoreUnavailable), capture_logs() as said:
            while True:  # the first may find that the connections are gone
                await store.write(one)
        assert [line for line in said if line["event"].startswith("database.url")] == []
        file.write_text("second")
        with pytest.raises(StoreUnavailable), capture_logs() as said:
            await store.write(one)
        assert [line["event"] for line in said] == ["database.url_kept"]
        file.write_text(written.format("second"))
        with capture_logs() as said:
            assert await store.write(one) == [1]
        assert [line["event"] for line in said] == ["database.url_renewed"]
        assert "second" not in str(said)
    finally:
        await store.close()
        await sql(f"DROP ROLE {role}")

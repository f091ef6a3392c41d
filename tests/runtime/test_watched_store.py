"""A store that knows whether its database takes writes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from services.dispatcher.outbox.schema import SCHEMA
from services.runtime.errors import StoreRefused, StoreUnavailable
from services.runtime.store import migrate, open_store
from services.runtime.store_health import AGAIN_SECONDS, MOST_AGAIN_SECONDS, PROBE_SECONDS
from services.runtime.store_postgresql import PostgresStore
from services.runtime.store_sqlite import SqliteStore
from services.runtime.watched_store import WatchedStore
from tests.support.postgres import Databases
from tests.support.sessions import SteppedClock


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A database with the dispatcher's schema."""
    await (await open_store(f"sqlite:///{tmp_path / 'hub.db'}", SCHEMA)).close()
    return tmp_path / "hub.db"


@pytest.fixture
async def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def store(path: Path, clock: SteppedClock) -> AsyncIterator[WatchedStore]:
    watched = WatchedStore(SqliteStore(path), SCHEMA, clock)
    yield watched
    await watched.close()


async def _fails(store: WatchedStore, saying: str) -> None:
    with pytest.raises(StoreUnavailable, match=saying):
        await store.check()


async def test_it_finds_out_by_a_write_of_its_own(
    store: WatchedStore, path: Path, clock: SteppedClock
) -> None:
    """C52: nobody publishes to a service that is not serving."""
    await store.check()
    path.rename(path.with_name("elsewhere"))
    await store.check()  # nobody has written since
    clock.advance(PROBE_SECONDS)
    await _fails(store, "cannot be found")
    path.with_name("elsewhere").rename(path)
    clock.advance(AGAIN_SECONDS)
    await store.check()


async def test_a_write_that_fails_is_enough(store: WatchedStore, path: Path, clock: SteppedClock) -> None:
    """C52: and one that only reads makes it well no more."""
    await store.check()
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(StoreUnavailable):
        await store.write(lambda connection: connection.execute(text("SELECT 1")).scalar())
    await _fails(store, "cannot be found")
    path.with_name("elsewhere").rename(path)
    await store.write(lambda connection: connection.execute(text("SELECT 1")).scalar())
    await _fails(store, "cannot be found")


async def test_what_is_refused_for_its_values_says_nothing_of_the_database(store: WatchedStore) -> None:
    await store.check()
    with pytest.raises(StoreRefused):
        await store.write(lambda c: c.execute(text("INSERT INTO node (node_id) VALUES (NULL)")))
    await store.check()


async def test_one_write_is_tried_at_a_time_also_if_whoever_asks_gives_up(
    store: WatchedStore, clock: SteppedClock
) -> None:
    """A disk that hangs: what waits for it does not grow."""
    await store.check()
    release = asyncio.Event()
    begun: list[int] = []
    write = store._inner.write

    async def hanging(work: object) -> object:
        begun.append(1)
        await release.wait()
        return await write(work)  # type: ignore[arg-type]

    store._inner.write = hanging  # type: ignore[method-assign, assignment]
    clock.advance(PROBE_SECONDS)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.check(), 0.01)
        clock.advance(PROBE_SECONDS)
    assert len(begun) == 1
    release.set()
    await store.check()


async def test_a_probe_is_a_write_that_the_database_makes_durable(store: WatchedStore, path: Path) -> None:
    await store.check()
    before = path.with_name("hub.db-wal").stat().st_size
    store._clock.advance(PROBE_SECONDS)  # type: ignore[attr-defined]
    await store.check()
    assert path.with_name("hub.db-wal").stat().st_size > before


@pytest.mark.parametrize(
    ("breaking", "mending", "saying"),
    [
        (
            "ALTER DATABASE {} SET default_transaction_read_only = on",
            "ALTER DATABASE {} SET default_transaction_read_only = off",
            "no host takes writes",
        ),
        (
            # What a server says whose disk is full.
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END$$; "
            "CREATE TRIGGER full_disk BEFORE UPDATE ON dispatcher_schema EXECUTE FUNCTION full_disk()",
            "DROP TRIGGER full_disk ON dispatcher_schema",
            "No space left on device",
        ),
    ],
    ids=["read-only", "disk full"],
)
async def test_postgresql_that_takes_no_writes_is_found_out(
    databases: Databases, clock: SteppedClock, breaking: str, mending: str, saying: str
) -> None:
    """C52."""
    url = databases.empty()
    await migrate(url, SCHEMA)
    name = url.rpartition("/")[2]
    store = WatchedStore(PostgresStore(url), SCHEMA, clock)
    try:
        await store.check()
        _change(databases, name, breaking)
        with pytest.raises(StoreUnavailable, match=saying):
            for _ in range(5):  # connections of before say first that they are gone
                clock.advance(PROBE_SECONDS)
                with contextlib.suppress(_Gone):
                    await _checked(store)
        _change(databases, name, mending)
        for _ in range(5):
            clock.advance(MOST_AGAIN_SECONDS)
            with contextlib.suppress(_Gone):
                await _checked(store)
        await store.check()
    finally:
        await store.close()


class _Gone(Exception):
    """A connection was ended."""


async def _checked(store: WatchedStore) -> None:
    try:
        await store.check()
    except StoreUnavailable as error:
        if "no host takes writes" in error.detail or "No space" in error.detail:
            raise
        raise _Gone from error


def _change(databases: Databases, name: str, statements: str) -> None:
    """What is set for a database holds for connections made after it."""
    from_outside = "postgres" if "{}" in statements else name
    databases.server.sql(statements.replace("{}", f'"{name}"'), from_outside)
    databases.server.sql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' "
        "AND pid <> pg_backend_pid()",
        name,
    )

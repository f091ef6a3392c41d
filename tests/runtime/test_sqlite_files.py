"""Databases whose files go away or are wanted by others while a process has them."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from services.runtime import store_sqlite
from services.runtime.errors import StartupError, StoreUnavailable
from services.runtime.store_sqlite import SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "hub.db")
    await opened.write(lambda connection: connection.execute(text("CREATE TABLE item (n INTEGER)")))
    yield opened
    await opened.close()


def _add(connection: Connection) -> None:
    connection.execute(text("INSERT INTO item VALUES (1)"))


@pytest.mark.parametrize("name", ["hub.db", "hub.db-wal"])
async def test_a_write_to_a_file_that_was_deleted_fails_until_it_is_back(
    store: SqliteStore, tmp_path: Path, name: str
) -> None:
    """C52: it would be gone with the process."""
    await store.write(_add)
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable, match=f"{name} cannot be found: No such file"):
        await store.write(_add)
    (tmp_path / "elsewhere").rename(tmp_path / name)
    await store.write(_add)


@pytest.mark.parametrize("name", ["hub.db", "hub.db-wal"])
async def test_a_write_to_a_file_that_was_replaced_fails(
    store: SqliteStore, tmp_path: Path, name: str
) -> None:
    """C52: a backup that was put in its place while the service runs."""
    (tmp_path / "copy").write_bytes((tmp_path / name).read_bytes())
    (tmp_path / "copy").replace(tmp_path / name)
    with pytest.raises(StoreUnavailable, match=r"another file than the one that was opened; .* restart"):
        await store.write(_add)


async def test_the_whole_folder_may_go(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    opened = SqliteStore(folder / "hub.db")
    await opened.write(lambda connection: connection.execute(text("CREATE TABLE item (n INTEGER)")))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(StoreUnavailable, match="cannot be found"):
        await opened.write(_add)
    await opened.close()


async def test_a_second_process_is_refused_also_without_the_lock_file(
    store: SqliteStore, tmp_path: Path
) -> None:
    with pytest.raises(StartupError, match="in use by another process"):
        SqliteStore(tmp_path / "hub.db")
    (tmp_path / "hub.db.lock").unlink()
    # Locks of a process end when it closes any descriptor of the file; this one does not.
    os.close(os.open(tmp_path / "hub.db", os.O_RDWR))
    with pytest.raises(StartupError, match="in use by another process"):
        SqliteStore(tmp_path / "hub.db")
    await store.write(_add)


async def test_what_is_closed_can_be_opened_again_under_another_name_too(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / "hub.db")
    await first.write(lambda connection: connection.execute(text("CREATE TABLE item (n INTEGER)")))
    (tmp_path / "link.db").symlink_to(tmp_path / "hub.db")
    with pytest.raises(StartupError, match="in use by another process"):
        SqliteStore(tmp_path / "link.db")
    await first.close()
    second = SqliteStore(tmp_path / "link.db")
    await second.write(_add)
    await second.write(_add)
    await second.close()


async def test_of_many_that_start_while_the_lock_file_is_deleted_one_has_it(tmp_path: Path) -> None:
    """Between opening and locking it."""
    path = tmp_path / "hub.db"

    def start() -> SqliteStore | None:
        try:
            return SqliteStore(path)
        except StartupError:
            return None

    def delete() -> None:
        for _ in range(200):
            (tmp_path / "hub.db.lock").unlink(missing_ok=True)

    deleting = asyncio.create_task(asyncio.to_thread(delete))
    started = await asyncio.gather(*(asyncio.to_thread(start) for _ in range(16)))
    await deleting
    opened = [store for store in started if store is not None]
    for store in opened:
        await store.close()
    assert len(opened) <= 1


async def test_a_log_that_grew_while_something_was_read_gives_its_room_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_sqlite, "WAL_PAGES", 50)
    monkeypatch.setattr(store_sqlite, "MOST_WAL_BYTES", 512 * 1024)
    store = SqliteStore(tmp_path / "hub.db")
    await store.write(lambda connection: connection.execute(text("CREATE TABLE item (n BLOB)")))
    reading, release = threading.Event(), threading.Event()

    def read(connection: Connection) -> None:
        connection.execute(text("SELECT count(*) FROM item")).scalar()
        reading.set()
        release.wait(60)

    def add(connection: Connection) -> None:
        connection.execute(text("INSERT INTO item VALUES (zeroblob(100000))"))

    long_read = asyncio.create_task(store.read(read))
    await asyncio.to_thread(reading.wait, 60)
    for _ in range(20):
        await store.write(add)
    log = tmp_path / "hub.db-wal"
    assert log.stat().st_size > 2_000_000
    release.set()
    await long_read
    for _ in range(3):
        await store.write(add)
    assert log.stat().st_size <= 512 * 1024
    await store.close()


def test_a_path_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"cannot write beside the database .*: No such file"):
        SqliteStore(tmp_path / "none" / "hub.db")
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(StartupError, match=r"cannot write the database .*: Is a directory"):
        SqliteStore(tmp_path / "folder.db")


async def test_a_reading_ends_within_its_time_and_others_read_on(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that would take for ever holds up the others, and the log grows, for no longer than a statement of
    PostgreSQL may take; short ones before and after it are not cut."""
    monkeypatch.setattr(store_sqlite, "READ_SECONDS", 0.2)
    endless = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
    count = text("SELECT count(*) FROM item")
    await store.write(_add)
    reading = asyncio.create_task(store.read(lambda connection: connection.execute(endless).scalar()))
    beside = asyncio.create_task(store.read(lambda connection: connection.execute(count).scalar()))
    await store.write(_add)
    with pytest.raises(StoreUnavailable, match=r"a reading took more than 0\.2 s"):
        await reading
    assert await beside == 2
    assert await store.read(lambda connection: connection.execute(count).scalar()) == 2

"""`python -m services.NAME backup` and `... restore`: `services.runtime.backup_command`."""

import asyncio
import os
import sqlite3
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from sqlalchemy import insert, select

from demo.postgres import find_binaries
from services.dispatcher.outbox.schema import SCHEMA as DISPATCHER
from services.dispatcher.outbox.schema import seen_time
from services.dispatcher.settings import DispatcherMigrationSettings
from services.runtime.backup_command import back_up, ran_backup, restore
from services.runtime.backup_postgresql import _connection
from services.runtime.errors import StartupError
from services.runtime.migrations import head
from services.runtime.store import Store, open_store
from services.sessions.schema import SCHEMA as SESSIONS
from tests.support.postgres import Databases

WORDS = {"backup": back_up, "restore": restore}
SCHEMAS = {"dispatcher": DISPATCHER, "sessions": SESSIONS}


@dataclass(frozen=True)
class Ended:
    """What the command came to: its status, what it says, what it wrote to its pipe."""

    status: int
    said: str
    written: bytes = b""


def run(
    word: str,
    file: object,
    *,
    url: str,
    service: str = "dispatcher",
    given: bytes = b"",
    path: str | None = None,
) -> Ended:
    """The command without its process, on a loop of its own. `path`: where programs are."""

    def work() -> Ended:
        with tempfile.TemporaryFile() as pipe:
            pipe.write(given)
            pipe.seek(0)
            try:
                said = asyncio.run(WORDS[word](url, str(file), SCHEMAS[service], pipe))
            except StartupError as error:
                return Ended(1, str(error))
            pipe.seek(0)
            return Ended(0, said, pipe.read())

    changed = {} if path is None else {"PATH": path}
    with mock.patch.dict(os.environ, changed), ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def done(ended: Ended) -> str:
    assert ended.status == 0, ended.said
    return ended.said


def refused(ended: Ended) -> str:
    """One sentence."""
    assert ended.status == 1, ended.said
    assert "\n" not in ended.said
    return ended.said


async def write(store: Store, number: int) -> None:
    row = {"name": f"row-{number}", "at_ms": number}
    await store.write(lambda connection: connection.execute(insert(seen_time), row))


async def rows(url: str) -> set[int]:
    """What the database has, opened as a dispatcher opens it."""
    store = await open_store(url, DISPATCHER)
    found = await store.read(lambda connection: set(connection.execute(select(seen_time.c.at_ms)).scalars()))
    await store.close()
    return found


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


async def test_a_copy_is_taken_while_the_service_writes(tmp_path: Path) -> None:
    """It has all that was committed before it began, and the service notices nothing: not a write fails."""
    database, backup, restored = (tmp_path / name for name in ("hub.db", "backup", "new.db"))
    store = await open_store(url_of(database), DISPATCHER)
    for number in range(50):
        await write(store, number)
    taking = asyncio.create_task(asyncio.to_thread(run, "backup", backup, url=url_of(database)))
    written = 50
    while not taking.done():
        await write(store, written)
        written += 1
    said = done(await taking)
    await store.close()
    assert f"with version {head(DISPATCHER)} of the schema of dispatcher is backed up in {backup}" in said
    assert sorted(path.name for path in tmp_path.iterdir() if "backup" in path.name) == ["backup"]
    said = done(run("restore", backup, url=url_of(restored)))
    assert f"database {restored} holds version {head(DISPATCHER)}" in said
    found = await rows(url_of(restored))
    assert set(range(50)) <= found <= set(range(written))


async def test_a_copy_goes_through_a_pipe(tmp_path: Path) -> None:
    """As `kubectl exec` and `kubectl run` have it; nothing is left beside either file."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    database, restored = tmp_path / "a" / "hub.db", tmp_path / "b" / "hub.db"
    store = await open_store(url_of(database), DISPATCHER)
    await write(store, 7)
    taken = run("backup", "-", url=url_of(database))
    await store.close()
    done(taken)
    done(run("restore", "-", url=url_of(restored), given=taken.written))
    assert await rows(url_of(restored)) == {7}
    for folder in ("a", "b"):
        assert {path.name for path in (tmp_path / folder).iterdir()} <= {"hub.db", "hub.db.lock"}


async def test_nothing_is_restored_over_a_database_that_is_in_use_or_holds_something(tmp_path: Path) -> None:
    """Both are as they were."""
    database, backup = tmp_path / "hub.db", tmp_path / "backup"
    store = await open_store(url_of(database), DISPATCHER)
    await write(store, 1)
    done(run("backup", backup, url=url_of(database)))
    await write(store, 2)
    said = refused(run("restore", backup, url=url_of(database)))
    assert f"database {database} is in use by another process" in said
    await store.close()
    said = refused(run("restore", backup, url=url_of(database)))
    assert f"database {database} is not empty: a backup is restored into a new one" in said
    assert await rows(url_of(database)) == {1, 2}
    said = refused(run("backup", backup, url=url_of(database)))
    assert f"{backup} is there already" in said


async def test_what_is_no_backup_of_the_service_is_refused(tmp_path: Path) -> None:
    """And the database can be restored afterwards all the same."""
    database, sessions, backup = (tmp_path / name for name in ("hub.db", "sessions.db", "backup"))
    restored = url_of(tmp_path / "new.db")
    await (await open_store(url_of(database), DISPATCHER)).close()
    await (await open_store(url_of(sessions), SESSIONS)).close()
    done(run("backup", backup, url=url_of(database)))
    whole = backup.read_bytes()

    def of_restoring(content: bytes) -> str:
        backup.write_bytes(content)
        return refused(run("restore", backup, url=restored))

    assert "is no whole SQLite database" in of_restoring(b"not a database, but longer than a header " * 100)
    assert "is no whole SQLite database" in of_restoring(whole[: len(whole) // 2])
    assert f"{backup} holds nothing" in of_restoring(b"")
    assert "holds the schema of sessions, not the schema of dispatcher" in of_restoring(sessions.read_bytes())
    assert "there is no backup" in refused(run("restore", tmp_path / "none", url=restored))
    assert "there is no database" in refused(run("backup", tmp_path / "b2", url=restored))
    backup.write_bytes(whole)
    newer = sqlite3.connect(backup)
    newer.execute("UPDATE dispatcher_schema SET version_num = 'v9999'")
    newer.commit()
    newer.close()
    assert "holds version v9999 of the schema of dispatcher, which this release" in of_restoring(
        backup.read_bytes()
    )
    backup.write_bytes(whole)
    done(run("restore", backup, url=restored))


@pytest.fixture
def programs() -> str:
    """PATH with PostgreSQL's own programs before the others."""
    binaries = find_binaries()
    assert binaries is not None
    return f"{binaries}:{os.environ['PATH']}"


async def test_postgresql_is_backed_up_by_its_own_programs(
    tmp_path: Path, databases: Databases, programs: str
) -> None:
    """One service's tables, all of them or nothing; no password is told."""
    backup = tmp_path / "backup"
    url, other = await databases.fresh(DISPATCHER), databases.empty()
    store = await open_store(url, DISPATCHER)
    await write(store, 7)
    done(run("backup", backup, url=url, path=programs))
    await store.close()
    said = refused(run("restore", backup, url=url, path=programs))
    assert "is not empty: it has delivery, delivery_event, dispatcher_schema," in said
    assert databases.server.password not in said
    done(run("restore", backup, url=other, path=programs))
    assert await rows(other) == {7}
    said = refused(run("restore", backup, url=other, service="sessions", path=programs))
    assert f"{backup} is no backup of the schema of sessions" in said
    piped = run("backup", "-", url=url, path=programs)
    done(piped)
    third = databases.empty()
    done(run("restore", "-", url=third, given=piped.written, path=programs))
    assert await rows(third) == {7}


async def test_without_postgresqls_programs_the_command_says_what_to_run(
    tmp_path: Path, databases: Databases
) -> None:
    url = await databases.fresh(DISPATCHER)
    said = refused(run("backup", tmp_path / "b", url=url, path=""))
    assert "pg_dump is not installed here" in said
    assert "run it where they are, as in: pg_dump --dbname=postgresql://" in said
    assert "--table=dispatcher_schema" in said
    assert f"--file={tmp_path / 'b'}" in said
    assert databases.server.password not in said
    said = refused(run("restore", tmp_path / "b", url=url, path=""))
    assert "pg_restore --dbname=postgresql://" in said
    assert said.rstrip().endswith(str(tmp_path / "b"))
    assert databases.server.password not in said


def test_no_password_is_on_a_command_line() -> None:
    """Wherever the URL has it; what else it says is as libpq reads it."""
    address, given = _connection("postgresql://h/db?user=u&password=a%20b&options=-c%20search_path%3Dx")
    assert given == {"PGPASSWORD": "a b"}
    assert "password" not in address
    assert "options=-c%20search_path%3Dx" in address
    with pytest.raises(StartupError, match="sslpassword"):
        _connection("postgresql://h/db?sslpassword=secret")


def test_a_file_has_to_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the first word behind the command."""
    for words in (["backup"], ["restore", "--database", "sqlite:///a.db"]):
        monkeypatch.setattr(sys, "argv", ["program", *words])
        with pytest.raises(SystemExit) as ended:
            ran_backup("cloudhub-dispatcher", DispatcherMigrationSettings, DISPATCHER)
        assert ended.value.code == 2
        assert f"usage: {words[0]} FILE [--database URL]; FILE may be -" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["program", "--listen", "127.0.0.1:0"])
    assert not ran_backup("cloudhub-dispatcher", DispatcherMigrationSettings, DISPATCHER)

"""`python -m services.NAME backup` and `... restore`: `services.runtime.backup_command`."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import insert, select, text

from demo.postgres import find_binaries
from services.dispatcher.outbox.schema import SCHEMA as DISPATCHER
from services.dispatcher.outbox.schema import seen_time
from services.dispatcher.settings import DispatcherMigrationSettings
from services.runtime.backup_command import back_up, ran_backup, restore
from services.runtime.backup_postgresql import _connection, _run
from services.runtime.errors import StartupError
from services.runtime.migrations import head
from services.runtime.store import Store, migrate, open_store
from services.sessions.schema import SCHEMA as SESSIONS
from tests.support.postgres import Databases
from tests.support.processes import eventually

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


async def test_a_backup_of_a_newer_release_is_refused_before_anything_is_written(
    tmp_path: Path, databases: Databases, programs: str
) -> None:
    """The database is as empty as before, and takes a backup that fits."""
    backup, newer = tmp_path / "backup", tmp_path / "newer"
    url, other = await databases.fresh(DISPATCHER), databases.empty()
    done(run("backup", backup, url=url, path=programs))
    store = await open_store(url, DISPATCHER)
    await store.write(lambda c: c.execute(text("UPDATE dispatcher_schema SET version_num = 'v9999'")))
    words = ["--format=custom", "--table=dispatcher_schema", "--table=seen_time"]
    for more in ([], ["--inserts"], ["--exclude-table-data=dispatcher_schema"]):
        newer.unlink(missing_ok=True)
        _run("pg_dump", [*words, *more, f"--file={newer}"], url)
        said = refused(run("restore", newer, url=other, path=programs))
        if "--exclude-table-data=dispatcher_schema" in more:
            assert "should have the row of dispatcher_schema" in said
        else:
            assert f"{newer} holds version v9999 of the schema of dispatcher, which this release" in said
            assert "use the release that made it, or a newer one" in said
    await store.write(lambda c: c.execute(text("UPDATE dispatcher_schema SET version_num = 'v11'")))
    await store.close()
    assert (
        databases.server.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", named(other))
        == "0"
    )
    done(run("restore", backup, url=other, path=programs))


def named(url: str) -> str:
    """The name of a URL's database."""
    return url.rpartition("/")[2]


def script(folder: Path, name: str, body: str) -> str:
    """PATH on which a program of this name is a shell script."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(body)
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


async def test_what_pg_dump_says_is_one_sentence_and_leaves_no_file(
    tmp_path: Path, databases: Databases
) -> None:
    """Older than the server, failing silently, or no program at all."""
    url = await databases.fresh(DISPATCHER)
    bin_path, folder = tmp_path / "bin", tmp_path / "backups"
    folder.mkdir()
    half = "#!/bin/sh\nfor word; do case $word in --file=*) echo half > ${word#--file=};; esac; done\n"
    older = "echo 'pg_dump: error: server version mismatch\npg_dump: detail: 15 and 9' >&2\nexit 1\n"
    for body, wanted in (
        (half + older, "server version mismatch; pg_dump: detail: 15 and 9"),
        (half + "exit 3\n", "pg_dump failed: it says nothing, its status is 3"),
        ("no program", "pg_dump cannot be run: Exec format error"),
    ):
        script(bin_path, "pg_dump", body)
        # No other one behind it, which would be run where this cannot be.
        said = refused(run("backup", folder / "b", url=url, path=str(bin_path)))
        assert wanted in said
        assert databases.server.password not in said
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_a_file_that_cannot_be_is_named_in_one_sentence(
    tmp_path: Path, engine: str, request: pytest.FixtureRequest, programs: str
) -> None:
    """Nothing is left beside it."""
    url, empty = url_of(tmp_path / "hub.db"), url_of(tmp_path / "new.db")
    if engine == "postgresql":
        databases: Databases = request.getfixturevalue("databases")
        url, empty = await databases.fresh(DISPATCHER), databases.empty()
    else:
        await migrate(url, DISPATCHER)
    folder, truncated = tmp_path / "folder", tmp_path / "truncated"
    folder.mkdir()

    def said(word: str, file: object) -> str:
        return refused(run(word, file, url=url if word == "backup" else empty, path=programs))

    assert f"{folder} is there already" in said("backup", folder)
    missing = folder / "none" / "backup"
    assert f"cannot write the backup {missing}: No such file or directory" in said("backup", missing)
    assert ": File name too long" in said("backup", folder / ("x" * 252))
    assert ": Not a directory" in said("backup", Path("/dev/null/backup"))
    assert f"{folder} is no file" in said("restore", folder)
    assert "there is no backup" in said("restore", missing)
    assert ": File name too long" in said("restore", folder / ("x" * 300))
    assert list(folder.iterdir()) == []
    done(run("backup", folder / "whole", url=url, path=programs))
    truncated.write_bytes((folder / "whole").read_bytes()[:-5000])
    assert str(truncated) in said("restore", truncated) or "pg_restore failed" in said("restore", truncated)
    done(run("restore", folder / "whole", url=empty, path=programs))


async def test_a_full_disk_behind_a_pipe_is_told(tmp_path: Path) -> None:
    """The copy beside the database is gone."""
    database = tmp_path / "hub.db"
    await migrate(url_of(database), DISPATCHER)
    with open("/dev/full", "wb", 0) as full, pytest.raises(StartupError) as fault:  # noqa: ASYNC230, PTH123
        await back_up(url_of(database), "-", DISPATCHER, full)
    assert str(fault.value) == "the backup could not be written: No space left on device"
    assert not list(tmp_path.glob(".*"))


def started(word: str, file: object, url: str, path: str = "", **pipes: Any) -> subprocess.Popen[bytes]:
    """The command as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "services.dispatcher", word, str(file)],
        env={**os.environ, "CLOUDHUB_DISPATCHER_DATABASE": url, "PATH": path or os.environ["PATH"]},
        stderr=subprocess.PIPE,
        **pipes,
    )


async def ended(process: subprocess.Popen[bytes], number: signal.Signals) -> str:
    """What it says when the signal ends it, which is one sentence and no traceback."""
    process.send_signal(number)
    _, errors = await asyncio.to_thread(process.communicate)
    said = errors.decode()
    assert process.returncode == 128 + number, said
    assert said.count("\n") == 1
    return said


async def test_a_signal_ends_a_command_at_a_pipe(tmp_path: Path) -> None:
    """One whose reader takes nothing, and one whose writer says nothing; nothing is left of either."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    database, restored = tmp_path / "a" / "hub.db", tmp_path / "b" / "hub.db"
    await migrate(url_of(database), DISPATCHER)

    def copies(folder: str) -> list[Path]:
        return list((tmp_path / folder).glob(".hub.db.*/copy"))

    writes = started("backup", "-", url_of(database), stdout=subprocess.PIPE)
    reads = started("restore", "-", url_of(restored), stdin=subprocess.PIPE)
    assert writes.stdout is not None
    await asyncio.to_thread(writes.stdout.read, 1)
    said = await ended(writes, signal.SIGTERM)
    assert said == "cloudhub-dispatcher: backup was ended by SIGTERM: no half of a backup is left\n"
    await eventually(lambda: copies("b"), 60, "it reads")
    said = await ended(reads, signal.SIGINT)
    assert said == "cloudhub-dispatcher: restore was ended by SIGINT: nothing is half restored\n"
    assert not [*(tmp_path / "a").glob(".*"), *(tmp_path / "b").iterdir()]


async def test_a_signal_ends_pg_dump_too(tmp_path: Path, databases: Databases) -> None:
    """And takes its half of a file away."""
    url = await databases.fresh(DISPATCHER)
    folder = tmp_path / "backups"
    folder.mkdir()
    part, pid = folder / ".b.part", tmp_path / "pid"
    body = f"#!/bin/sh\necho half > {part}\necho $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 600\n"
    process = started("backup", folder / "b", url, script(tmp_path / "bin", "pg_dump", body))
    await eventually(pid.exists, 60, "pg_dump runs")
    assert part.read_text() == "half\n"
    said = await ended(process, signal.SIGTERM)
    assert databases.server.password not in said
    assert list(folder.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_nothing_but_the_backup_is_on_standard_output(
    tmp_path: Path, databases: Databases, programs: str
) -> None:
    """What is said goes to standard error; the dump is one that pg_restore reads."""
    url, other = await databases.fresh(DISPATCHER), databases.empty()
    process = started("backup", "-", url, programs, stdout=subprocess.PIPE)
    written, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, errors.decode()
    assert written.startswith(b"PGDMP")
    assert errors.decode().endswith("is backed up in standard output\n")
    done(run("restore", "-", url=other, given=written, path=programs))


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

"""Schemas of databases: `services.runtime.migrations`, the histories of the services, `... migrate`."""

import asyncio
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, text

from services.dispatcher.outbox.schema import SCHEMA as DISPATCHER
from services.runtime import store_postgresql
from services.runtime.errors import StartupError
from services.runtime.migrations import Schema, head, take_turns
from services.runtime.store import Store, migrate, open_store
from services.runtime.store_postgresql import PostgresStore
from services.runtime.store_sqlite import SqliteStore
from services.sessions.schema import SCHEMA as SESSIONS
from tests.support.postgres import Databases

SCHEMAS = pytest.mark.parametrize("schema", [DISPATCHER, SESSIONS], ids=lambda schema: schema.service)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    databases: Databases = request.getfixturevalue("databases")
    return databases.empty()


def bare_store(url: str) -> Store:
    """A store over whatever is there."""
    if url.startswith("sqlite"):
        return SqliteStore(Path(url.removeprefix("sqlite:///")))
    return PostgresStore(url)


def described(connection: Connection, schema: Schema) -> dict[str, Any]:
    """All that the database says of the schema's tables."""
    inspector = inspect(connection)
    shown: dict[str, Any] = {}
    for name in schema.metadata.tables:
        columns = inspector.get_columns(name)
        shown[name] = {
            "columns": {c["name"]: (str(c["type"]), c["nullable"]) for c in columns},
            "collations": {c["name"]: getattr(c["type"], "collation", None) for c in columns},
            "key": inspector.get_pk_constraint(name)["constrained_columns"],
            "indexes": sorted(
                (
                    str(i["name"]),
                    i["column_names"],
                    i["unique"],
                    sorted(f"{k}: {v}" for k, v in i.get("dialect_options", {}).items()),
                )
                for i in inspector.get_indexes(name)
            ),
            "unique": sorted(str(u["column_names"]) for u in inspector.get_unique_constraints(name)),
            "checks": sorted(str(c["sqltext"]) for c in inspector.get_check_constraints(name)),
        }
    return shown


@SCHEMAS
async def test_the_migrations_lead_to_the_tables_that_the_code_has(
    schema: Schema, empty: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """No drift: whoever changes a table and not the history, or the other way round, sees it here."""
    await migrate(empty, schema)
    is_sqlite = empty.startswith("sqlite")
    made = f"sqlite:///{tmp_path / 'made.db'}" if is_sqlite else request.getfixturevalue("databases").empty()
    migrated_store, made_store = bare_store(empty), bare_store(made)
    await made_store.write(schema.metadata.create_all)
    assert await migrated_store.read(lambda c: described(c, schema)) == await made_store.read(
        lambda c: described(c, schema)
    )
    await migrated_store.close()
    await made_store.close()


@SCHEMAS
async def test_a_migrated_database_is_opened_and_migrating_it_again_is_nothing(
    schema: Schema, empty: str
) -> None:
    assert (await migrate(empty, schema)).endswith(
        f"now holds version {head(schema)} of the schema of {schema.service}"
    )
    assert (await migrate(empty, schema)).endswith("already")
    await (await open_store(empty, schema)).close()


async def test_an_empty_file_needs_no_migration_and_an_empty_server_does(
    tmp_path: Path, databases: Databases
) -> None:
    await (await open_store(f"sqlite:///{tmp_path / 'new.db'}", SESSIONS)).close()
    with pytest.raises(StartupError) as refused:
        await open_store(databases.empty(), SESSIONS)
    said = str(refused.value)
    assert "holds no schema of sessions; run: python -m services.sessions migrate --database URL" in said
    assert databases.server.password not in said


async def test_two_services_share_a_postgresql_database(databases: Databases) -> None:
    url = databases.empty()
    for schema in (DISPATCHER, SESSIONS):
        await migrate(url, schema)
    for schema in (DISPATCHER, SESSIONS):
        await (await open_store(url, schema)).close()
    assert not set(DISPATCHER.metadata.tables) & set(SESSIONS.metadata.tables)


async def test_a_file_of_another_service_or_program_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'one.db'}"
    await migrate(url, SESSIONS)
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE customer (id INTEGER)")
    foreign.close()
    for use in (open_store, migrate):
        with pytest.raises(StartupError, match="holds the schema of sessions, not the schema of dispatcher"):
            await use(url, DISPATCHER)
        with pytest.raises(StartupError, match="holds tables of another program"):
            await use(f"sqlite:///{tmp_path / 'foreign.db'}", DISPATCHER)


async def test_a_newer_schema_is_refused_and_left_alone(empty: str) -> None:
    """A rolled-back release says what it met instead of writing into tables it does not know."""
    await migrate(empty, SESSIONS)
    store = bare_store(empty)
    await store.write(lambda c: c.execute(text("UPDATE sessions_schema SET version_num = 'v99'")))
    await store.close()
    for use in (open_store, migrate):
        with pytest.raises(
            StartupError, match=r"holds version v99 of the schema of sessions, which this release \(v"
        ):
            await use(empty, SESSIONS)


async def test_an_older_schema_is_refused_with_the_command_to_run(empty: str, tmp_path: Path) -> None:
    """The database is one migration behind: a service does not change it by itself."""
    history = tmp_path / "history"
    history.mkdir()
    step = "revision = '{}'\ndown_revision = {}\n\n\ndef upgrade() -> None:\n    pass\n"
    (history / "v1_first.py").write_text(step.format("v1", None))
    schema = Schema("sessions", SESSIONS.metadata, history)
    await migrate(empty, schema)
    (history / "v2_second.py").write_text(step.format("v2", "'v1'"))
    with pytest.raises(
        StartupError,
        match=r"holds version v1 of the schema of sessions, this release wants v2; "
        r"run: python -m services\.sessions migrate --database URL",
    ):
        await open_store(empty, schema)
    await migrate(empty, schema)
    await (await open_store(empty, schema)).close()


async def run_migrate(service: str, *flags: str, **variables: str) -> tuple[int | None, str, str]:
    """Exit status and what the command wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"services.{service}",
        "migrate",
        *flags,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    return process.returncode, out.decode(), errors.decode()


@SCHEMAS
async def test_the_command_migrates_and_says_so(schema: Schema, empty: str) -> None:
    status, said, errors = await run_migrate(schema.service, "--database", empty)
    assert (status, errors) == (0, "")
    assert said.endswith(f"now holds version {head(schema)} of the schema of {schema.service}\n")
    variable = f"CLOUDHUB_{schema.service.upper()}_DATABASE"
    status, said, _ = await run_migrate(schema.service, **{variable: empty})
    assert status == 0
    assert said.endswith("already\n")


@SCHEMAS
async def test_migrations_at_the_same_time_go_one_after_the_other(
    schema: Schema, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replica's pod may run one before it starts; one that takes long makes the others wait."""
    monkeypatch.setattr(store_postgresql, "LOCK_SECONDS", 0.1)
    url = databases.empty()
    blocker, blocked = PostgresStore(url), asyncio.Event()

    async def hold() -> None:
        def work(connection: Connection) -> None:
            take_turns(connection, schema)
            blocked.set()
            connection.execute(text("SELECT pg_sleep(0.5)"))

        await blocker.write(work)

    async with asyncio.TaskGroup() as group:
        group.create_task(hold())
        await blocked.wait()
        said = [group.create_task(migrate(url, schema)) for _ in range(4)]
    await blocker.close()
    assert [task.result().endswith("already") for task in said].count(False) == 1, "one did it"


async def test_the_command_fails_with_one_sentence(tmp_path: Path) -> None:
    status, _, errors = await run_migrate("dispatcher")
    assert status == 2
    assert errors.startswith("cloudhub-dispatcher migrate: --database (or CLOUDHUB_DISPATCHER_DATABASE)")
    status, _, errors = await run_migrate("dispatcher", "--database", "postgresql://me:secret@127.0.0.1:1/db")
    assert status == 1
    assert errors.startswith("cloudhub-dispatcher: cannot use the database postgresql://127.0.0.1:1/db")
    assert errors.count("\n") == 1
    assert "secret" not in errors

"""PostgreSQL for tests: one private server per run, a database of its own for each test."""

import asyncio
import itertools
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from demo.postgres import MISSING, NOT_DURABLE, START_SECONDS, PostgresServer, find_binaries
from services.runtime.migrations import Schema
from services.runtime.store import migrate

# A killed process leaves what it wrote to the operating system, so the disk need not be waited for.
SURVIVES_KILL: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}


def need_postgres() -> None:
    """Skips where there is no PostgreSQL; where the checks have to be whole, that is a failure."""
    if find_binaries() is None:
        if os.environ.get("CI") == "true":
            pytest.fail(MISSING)
        pytest.skip(MISSING)


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that another user can reach: pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="cloudhub-postgres-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# What a schema is made of: a database in which a test has changed any of it serves no other test.
_SHAPE = """
    SELECT md5(string_agg(line, ';' ORDER BY line)) FROM (
        SELECT table_name || column_name || data_type AS line FROM information_schema.columns
        WHERE table_schema = 'public'
        UNION ALL SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
    ) AS lines
"""
_END_OTHERS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class Databases:
    """Fresh databases on one server, copied from one that was migrated once per schema, or emptied again: a
    copy is three hundred new files."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._shapes: dict[str, str] = {}
        self._lent: list[tuple[str, str]] = []
        self._free: defaultdict[str, list[str]] = defaultdict(list)

    def empty(self) -> str:
        """The URL of a database without tables."""
        return self.server.create_database(f"test_{next(self._numbers)}")

    async def fresh(self, schema: Schema) -> str:
        """The URL of a database that holds an empty schema, until the test ends."""
        template = f"template_{schema.service}"
        if schema.service not in self._shapes:
            url = self.server.create_database(template)
            await migrate(url, schema)
            self._shapes[schema.service] = await _shape(url)
        while free := self._free[schema.service]:
            url = free.pop()
            if await _emptied(url, schema, self._shapes[schema.service]):
                break
        else:
            name = f"test_{next(self._numbers)}"
            url = await asyncio.to_thread(self.server.create_database, name, template)
        self._lent.append((schema.service, url))
        return url

    def take_back(self) -> None:
        """The test is over that they were given to."""
        for service, url in self._lent:
            self._free[service].append(url)
        self._lent.clear()


async def _shape(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval(_SHAPE))
    finally:
        await connection.close()


async def _emptied(url: str, schema: Schema, shape: str) -> bool:
    """Makes it as it was at first; False if its tables are not."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_END_OTHERS)
        if await connection.fetchval(_SHAPE) != shape:
            return False
        # Not TRUNCATE, which makes new files.
        await connection.execute("; ".join(f'DELETE FROM "{name}"' for name in schema.metadata.tables))
        await connection.execute("SELECT pg_stat_reset()")
    finally:
        await connection.close()
    return True


@contextmanager
def running_databases(settings: Mapping[str, str] = NOT_DURABLE) -> Iterator[Databases]:
    """A server that lasts as long as the body."""
    need_postgres()
    with reachable_folder() as folder:
        server = PostgresServer(folder / "server", settings=settings)
        server.create()
        server.start()
        try:
            server.wait_ready()
            yield Databases(server)
        finally:
            server.stop()


@contextmanager
def running_pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary and a standby that has all that was committed before a commit is answered."""
    need_postgres()
    with reachable_folder() as folder:
        primary = PostgresServer(folder / "primary", settings=SURVIVES_KILL)
        standby = PostgresServer(folder / "standby", settings=SURVIVES_KILL)
        try:
            primary.create()
            primary.start()
            primary.wait_ready()
            standby.copy_of(primary)
            standby.start()
            standby.wait_ready()
            primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
            primary.sql("SELECT pg_reload_conf()")
            deadline = time.monotonic() + START_SECONDS
            while primary.sql("SELECT sync_state FROM pg_stat_replication") != "sync":
                assert time.monotonic() < deadline, "the standby does not follow"
                time.sleep(0.05)
            yield primary, standby
        finally:
            standby.stop()
            primary.stop()

"""PostgreSQL for tests: one private server per run, a database of its own for each test."""

import asyncio
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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


class Databases:
    """Fresh databases on one server, copied from one that was migrated once per schema."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._templates: dict[str, str] = {}

    def empty(self) -> str:
        """The URL of a database without tables."""
        return self.server.create_database(f"test_{next(self._numbers)}")

    async def fresh(self, schema: Schema) -> str:
        """The URL of a database that holds an empty schema."""
        if schema.service not in self._templates:
            name = f"template_{schema.service}"
            await migrate(self.server.create_database(name), schema)
            self._templates[schema.service] = name
        name = f"test_{next(self._numbers)}"
        return await asyncio.to_thread(self.server.create_database, name, self._templates[schema.service])


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

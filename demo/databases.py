"""The databases of a hub on this machine: SQLite files, or a PostgreSQL server that it starts itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from demo.postgres import PostgresServer
from demo.processes import Child, ProcessFault

MIGRATE_SECONDS = 60.0


class Engine(StrEnum):
    """Where a hub keeps what it must not lose."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


@dataclass(frozen=True, slots=True)
class Databases:
    """The URL that each stateful service gets."""

    sessions: str
    dispatcher: str
    server_pid: int = 0
    """Of the PostgreSQL server, if there is one."""


def sqlite_databases(data: Path) -> Databases:
    """A file for each, for one replica of each."""
    return Databases(f"sqlite:///{data / 'sessions.db'}", f"sqlite:///{data / 'dispatcher.db'}")


def database_variable(service: str, url: str) -> dict[str, str]:
    """How a service is told the URL of its database: command lines can be read by everybody."""
    return {f"CLOUDHUB_{service.upper()}_DATABASE": url}


async def migrate(databases: Databases, logs: Path) -> None:
    """Brings the schemas of both services up to date. Raises ProcessFault."""
    async with asyncio.TaskGroup() as group:
        for service, url in (("sessions", databases.sessions), ("dispatcher", databases.dispatcher)):
            group.create_task(_migrate(service, url, logs), name=f"migrate {service}")


async def _migrate(service: str, url: str, logs: Path) -> None:
    name = f"migration of {service}"
    arguments = ["-m", f"services.{service}", "migrate"]
    log_path = logs / f"migrate-{service}.log"
    child = await Child.start(name, arguments, log_path, environment=database_variable(service, url))
    try:
        async with asyncio.timeout(MIGRATE_SECONDS):
            await child.succeeded()
    except TimeoutError:
        await child.kill()
        raise ProcessFault(f"the {name} took longer than {MIGRATE_SECONDS:g} s") from None


@asynccontextmanager
async def running_databases(engine: Engine, data: Path) -> AsyncIterator[Databases]:
    """Databases kept in `data` that are ready for the services. Raises ProcessFault or PostgresFault."""
    if engine is Engine.SQLITE:
        yield sqlite_databases(data)
        return
    server = PostgresServer(data / "postgres")
    await asyncio.to_thread(server.create)
    server.start()
    try:
        await asyncio.to_thread(server.wait_ready)
        url = await asyncio.to_thread(ensured_database, server)
        databases = Databases(url, url, server.pid)
        await migrate(databases, data / "logs")
        yield databases
    finally:
        await asyncio.to_thread(server.stop)


def ensured_database(server: PostgresServer, name: str = "cloudhub") -> str:
    """The URL of a database of a running server, made unless it is there. Blocking."""
    if server.sql(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
        return server.url(name)
    return server.create_database(name)

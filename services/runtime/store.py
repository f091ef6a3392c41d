"""A database by URL: transactions as plain functions over a SQLAlchemy connection.

    sqlite:///PATH                                        one process, nothing to install
    postgresql://USER:PASSWORD@HOST:PORT[,HOST:PORT]/DB   any number of processes

Whoever calls `write` may answer its caller when it returns: the rows are on disk.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from services.runtime.clock import SystemClock
from services.runtime.database_source import DatabaseSource
from services.runtime.database_url import engine_of, shown, sqlite_path
from services.runtime.errors import StartupError, StoreUnavailable
from services.runtime.migrations import (
    Schema,
    check_own,
    check_version,
    head,
    take_turns,
    upgrade,
    version_of,
)
from services.runtime.store_sqlite import SqliteStore
from services.runtime.watched_store import Transactions, WatchedStore

T = TypeVar("T")

MIGRATION_SECONDS = 3600.0
"""For one statement of a migration."""
MIGRATION_IDLE_SECONDS = 60.0
"""Between two statements of one, whose rows it may work on here. If its machine is lost, the tables that it
locked are free after so long."""


class Store(Protocol):
    """One database. Made by `open_store`; its opener closes it."""

    @property
    def is_shared(self) -> bool:
        """Whether other processes may write to the same tables."""
        ...

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one durable transaction. Raises StoreUnavailable; then nothing was written,
        unless the commit itself failed, after which it is unknown.

        `work` may be run more than once: it must change nothing but the database and what it returns.
        """
        ...

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in a read-only snapshot beside the writers. Raises StoreUnavailable."""
        ...

    async def close(self) -> None:
        """Waits for running transactions and closes the connections."""
        ...


async def open_store(source: DatabaseSource | str, schema: Schema) -> WatchedStore:
    """Opens a service's database; a new SQLite file gets the schema, a PostgreSQL database must have it.

    Raises StartupError if the URL is wrong, the database cannot be used, another process has the file,
    or what it holds is not what the service wants.
    """
    source = DatabaseSource(source) if isinstance(source, str) else source
    store, name = _store_of(source)
    command = f"python -m services.{schema.service} migrate --database URL"

    def prepare(connection: Connection) -> None:
        if not store.is_shared and check_own(connection, schema, name):
            upgrade(connection, schema, name)
        check_version(connection, schema, name, command)

    await _first_use(store, name, prepare)
    return WatchedStore(store, schema, SystemClock())


async def migrate(url: str, schema: Schema) -> str:
    """Brings a database to the schema that the service wants; says in one sentence what was done.

    Raises StartupError if it cannot.
    """
    store, name = _store_of(
        DatabaseSource(url), statement_seconds=MIGRATION_SECONDS, idle_seconds=MIGRATION_IDLE_SECONDS
    )

    def work(connection: Connection) -> str | None:
        if store.is_shared:
            take_turns(connection, schema)
        else:
            check_own(connection, schema, name)
        found = version_of(connection, schema)
        upgrade(connection, schema, name)
        return found

    found, wanted = await _first_use(store, name, work), head(schema)
    await store.close()
    if found == wanted:
        return f"database {name} holds version {wanted} of the schema of {schema.service} already"
    return f"database {name} now holds version {wanted} of the schema of {schema.service}"


async def looked_at(url: str, work: Callable[[Connection], T]) -> T:
    """What `work` finds in a database. Raises StartupError if it cannot be used, and what `work` raises."""
    store, name = _store_of(DatabaseSource(url))
    found = await _first_use(store, name, work)
    await store.close()
    return found


def _store_of(source: DatabaseSource, **postgresql: float) -> tuple[Transactions, str]:
    """The store that a URL names, and how to call it in a message."""
    url = source.read()
    if engine_of(url) == "sqlite":
        path = sqlite_path(url)
        return SqliteStore(path), str(path)
    # Here and not above: its driver costs each process 9 MiB and a twentieth of its start.
    from services.runtime.store_postgresql import PostgresStore

    reread = source.read if source.may_change else None
    return PostgresStore(url, reread=reread, **postgresql), shown(url)


async def _first_use(store: Transactions, name: str, work: Callable[[Connection], T]) -> T:
    try:
        try:
            return await store.write(work)
        except (StoreUnavailable, SQLAlchemyError) as error:
            detail = error.detail if isinstance(error, StoreUnavailable) else error
            raise StartupError(f"cannot use the database {name}: {detail}") from error
    except BaseException:
        await store.close()
        raise

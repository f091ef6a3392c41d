"""A database by URL: transactions as plain functions over a SQLAlchemy connection.

SQLite: WAL, synchronous=FULL, one writer thread, one reader thread, one process (a second one is
refused). Whoever calls `write` may answer its caller when it returns: the rows are on disk.
"""

import asyncio
import fcntl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
)
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from services.runtime.errors import StartupError, StoreUnavailable

T = TypeVar("T")


def schema_table(metadata: MetaData) -> Table:
    """The table that says which schema a database holds; belongs into every service's metadata."""
    return Table(
        "schema_version",
        metadata,
        Column("service", String(32), primary_key=True),
        Column("version", Integer, nullable=False),
    )


class Store:
    """One database of one service. Made by `open_store`; its opener closes it."""

    def __init__(self, writer: Engine, reader: Engine, lock: IO[str]) -> None:
        self._writer = writer
        self._reader = reader
        self._lock = lock
        self._write_thread = ThreadPoolExecutor(1, "store-write")
        self._read_thread = ThreadPoolExecutor(1, "store-read")

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one durable transaction. Raises StoreUnavailable; then nothing was written,
        unless the commit itself failed, after which it is unknown."""
        return await self._in_thread(self._write_thread, self._writer, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in a read-only snapshot beside the writer. Raises StoreUnavailable."""
        return await self._in_thread(self._read_thread, self._reader, work)

    async def _in_thread(
        self, thread: ThreadPoolExecutor, engine: Engine, work: Callable[[Connection], T]
    ) -> T:
        def transaction() -> T:
            with engine.begin() as connection:
                return work(connection)

        try:
            # Shielded: a cancelled caller must not leave a transaction half run in the thread.
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(thread, transaction))
        except DBAPIError as error:
            raise StoreUnavailable(f"the database refused: {error.orig}") from error

    async def close(self) -> None:
        """Waits for running transactions and closes the connections."""
        loop = asyncio.get_running_loop()
        for thread, engine in ((self._read_thread, self._reader), (self._write_thread, self._writer)):
            await loop.run_in_executor(thread, engine.dispose)
            thread.shutdown()
        self._lock.close()


def _sqlite_engine(path: Path, *, read_only: bool) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": 5, "cached_statements": 512},
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "cache_size=-65536",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        if read_only:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _sqlite_path(url: str) -> Path:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StartupError(f"database {url!r} is no URL; expected sqlite:///PATH") from error
    if parsed.drivername != "sqlite":
        raise StartupError(f"database {url!r}: {parsed.drivername} is not supported; expected sqlite:///PATH")
    if not parsed.database or parsed.database == ":memory:":
        raise StartupError("database: a file is needed, for example sqlite:///cloudhub.db")
    return Path(parsed.database)


def _lock_file(path: Path) -> IO[str]:
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = lock_path.open("a")
    except OSError as error:
        raise StartupError(f"cannot write beside the database {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StartupError(
            f"database {path} is in use by another process; SQLite serves one replica of a service"
        ) from error
    return lock


async def open_store(url: str, metadata: MetaData, service: str, version: int) -> Store:
    """Opens (and, if new, creates) the database of `service`.

    Raises StartupError if the URL is wrong, the file cannot be used or is no database, another
    process has it, or it holds the schema of another service or version.
    """
    path = _sqlite_path(url)
    lock = _lock_file(path)
    store = Store(_sqlite_engine(path, read_only=False), _sqlite_engine(path, read_only=True), lock)
    versions = metadata.tables["schema_version"]

    def prepare(connection: Connection) -> None:
        metadata.create_all(connection, tables=[versions])
        found = connection.execute(select(versions.c.service, versions.c.version)).all()
        if not found:
            metadata.create_all(connection)
            connection.execute(insert(versions).values(service=service, version=version))
        elif (found[0].service, found[0].version) != (service, version):
            raise StartupError(
                f"database {path} holds schema {found[0].service} {found[0].version}; "
                f"this is {service} {version}"
            )

    try:
        await store.write(prepare)
    except StartupError:
        await store.close()
        raise
    except (StoreUnavailable, SQLAlchemyError) as error:
        await store.close()
        raise StartupError(f"cannot use the database {path}: {error}") from error
    return store

"""SQLite: WAL, synchronous=FULL, one writer thread, one reader thread, one process."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.pool import StaticPool

from services.runtime.errors import StoreRefused, StoreUnavailable
from services.runtime.sqlite_files import SqliteFiles

T = TypeVar("T")

WAL_PAGES = 8000
"""Of 4 KiB: how long the log gets before it goes into the file."""
MOST_WAL_BYTES = 64 * 1024 * 1024
"""What is left of a log that grew longer, since something read for long."""

READ_SECONDS = 5.0
"""Of one reading: while it lasts the log grows on, and nobody else reads."""
# How often a reading looks at the time: after so many steps of SQLite's machine, about a millisecond.
_LOOK_AFTER = 50_000

# What the driver raises for a value it cannot store, as opposed to a database that does not answer.
_BAD_VALUES = (DataError, IntegrityError, InterfaceError, ProgrammingError)


class SqliteStore:
    """See `store.Store`. Raises StartupError if another process has the file or none can be there."""

    is_shared = False

    def __init__(self, path: Path) -> None:
        self._files = SqliteFiles(path)
        self._writer = _engine(path, read_only=False)
        self._reader = _engine(path, read_only=True)
        self._write_thread = ThreadPoolExecutor(1, "store-write")
        self._read_thread = ThreadPoolExecutor(1, "store-read")

    async def write(self, work: Callable[[Connection], T]) -> T:
        """See `store.Store.write`."""
        return await self._in_thread(self._write_thread, self._writer, work, self._files.check)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """See `store.Store.read`."""

        def bounded(connection: Connection) -> T:
            at = time.monotonic() + READ_SECONDS
            driver: Any = connection.connection.dbapi_connection
            driver.set_progress_handler(lambda: time.monotonic() > at, _LOOK_AFTER)
            try:
                return work(connection)
            except OperationalError as error:
                if time.monotonic() <= at:
                    raise
                raise StoreUnavailable(f"a reading took more than {READ_SECONDS:g} s") from error
            finally:
                driver.set_progress_handler(None, 0)

        return await self._in_thread(self._read_thread, self._reader, bounded)

    async def _in_thread(
        self,
        thread: ThreadPoolExecutor,
        engine: Engine,
        work: Callable[[Connection], T],
        check: Callable[[], None] = lambda: None,
    ) -> T:
        def transaction() -> T:
            with engine.begin() as connection:
                result = work(connection)
            # What was committed to files that nobody finds again must not be told as durable.
            check()
            return result

        try:
            # Shielded: a cancelled caller must not leave a transaction half run in the thread.
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(thread, transaction))
        except _BAD_VALUES as error:
            raise StoreRefused(f"the database refused: {error.orig}") from error
        except DBAPIError as error:
            raise StoreUnavailable(f"the database refused: {error.orig}") from error
        except (OverflowError, UnicodeEncodeError) as error:  # the driver's, unlike those above as they are
            raise StoreRefused(f"the database cannot hold a value: {error}") from error

    async def close(self) -> None:
        """See `store.Store.close`."""
        loop = asyncio.get_running_loop()
        for thread, engine in ((self._read_thread, self._reader), (self._write_thread, self._writer)):
            await loop.run_in_executor(thread, engine.dispose)
            thread.shutdown()
        self._files.close()


def _engine(path: Path, *, read_only: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        hide_parameters=True,
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
            # A page that many transactions write goes back into the file once for all of them.
            f"wal_autocheckpoint={WAL_PAGES}",
            # While a reading lasts the log grows on; it is cut back once that is over.
            f"journal_size_limit={MOST_WAL_BYTES}",
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

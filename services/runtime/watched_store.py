"""A store that knows whether its database takes writes: what `health` of a service goes by."""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection, column, table, update

from services.runtime.clock import Clock
from services.runtime.errors import RowDamaged, StoreBusy, StoreRefused, StoreUnavailable
from services.runtime.migrations import Schema
from services.runtime.store_health import StoreHealth

T = TypeVar("T")

# What says nothing of the database as a whole.
_OF_ROWS = (StoreRefused, StoreBusy, RowDamaged)


class Transactions(Protocol):
    """What is watched: see `store.Store`."""

    @property
    def is_shared(self) -> bool: ...

    async def write(self, work: Callable[[Connection], T]) -> T: ...

    async def read(self, work: Callable[[Connection], T]) -> T: ...

    async def close(self) -> None: ...


class WatchedStore:
    """See `store.Store`. Tries a write of its own in the row that holds the schema's version: nothing is
    changed by it, but the database has to make it durable."""

    def __init__(self, inner: Transactions, schema: Schema, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self._health = StoreHealth()
        versions = table(schema.version_table, column("version_num"))
        self._touch = update(versions).values(version_num=versions.c.version_num)
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_shared(self) -> bool:
        """See `store.Store.is_shared`."""
        return self._inner.is_shared

    async def write(self, work: Callable[[Connection], T]) -> T:
        """See `store.Store.write`."""

        def counted(connection: Connection) -> tuple[T, bool]:
            before = _changes(connection)
            result = work(connection)
            return result, _changes(connection) != before

        try:
            result, has_written = await self._inner.write(counted)
        except _OF_ROWS:
            raise
        except StoreUnavailable as error:
            self._health.failed(error.detail, self._clock.monotonic())
            raise
        if has_written:
            self._health.passed(self._clock.monotonic())
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        """See `store.Store.read`."""
        return await self._inner.read(work)

    async def check(self) -> None:
        """Raises StoreUnavailable if the database takes no writes, as the latest ones show: those of `write`,
        and one of its own where there was none for a few seconds."""
        if self._probing is None and self._health.wants_probe(self._clock.monotonic()):
            self._probing = asyncio.create_task(self._probe(), name="store-probe")
        if self._probing is not None:
            # One at a time, also where whoever asks gives up waiting.
            await asyncio.shield(self._probing)
        if not self._health.takes_writes:
            raise StoreUnavailable(self._health.detail)

    async def _probe(self) -> None:
        try:
            await self._inner.write(lambda connection: connection.execute(self._touch))
        except _OF_ROWS:
            self._health.tried(self._clock.monotonic())
        except StoreUnavailable as error:
            self._health.failed(error.detail, self._clock.monotonic())
        else:
            self._health.passed(self._clock.monotonic())
        finally:
            self._probing = None

    async def close(self) -> None:
        """See `store.Store.close`."""
        if self._probing is not None:
            await asyncio.wait([self._probing])
        await self._inner.close()


def _changes(connection: Connection) -> int:
    """Rows that this connection has changed so far, on SQLite; elsewhere nobody knows, and probes decide."""
    return int(getattr(connection.connection.dbapi_connection, "total_changes", 0))

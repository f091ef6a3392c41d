"""PostgreSQL: a small pool of connections to whichever host of the URL takes writes.

READ COMMITTED with row locks. A transaction that another one got in the way of is run again as a whole.
Every wait ends well below a lease: a transaction that outlives its owner's lease would be one nobody
expects any more.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.runtime.backoff import Backoff
from services.runtime.bounded_connection import BoundedConnection, bounded, missing, set_by
from services.runtime.database_url import hosts_of, shown
from services.runtime.errors import StartupError, StoreBusy, StoreRefused, StoreUnavailable
from services.runtime.logs import get_log

T = TypeVar("T")

_log = get_log("store")
POOL_CONNECTIONS = 8
_FAULTS = (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# How long a burst may queue up before a connection is free; those who call have deadlines of their own.
POOL_SECONDS = 10.0
CONNECT_SECONDS = 3.0
STATEMENT_SECONDS = 5.0
LOCK_SECONDS = 3.0
TRANSACTION_SECONDS = 8.0
# Between the statements of a transaction nothing is waited for. A process that stands still there holds the
# rows it locked: others, who wait for LOCK_SECONDS, are to have them before they give up.
IDLE_SECONDS = 2.0

_ATTEMPTS = 6
_RETRY = Backoff(0.01, 0.3, jitter=0.9)

# Serialization failure, deadlock, and a row that another replica has just made.
_IN_THE_WAY = frozenset({"40001", "40P01", "23505"})
_LOCKED = "55P03"
# Bad data, broken constraints, what is more than the server's program takes: an index entry, a text.
_REFUSED_CLASSES = ("22", "23", "54")
# The server goes, comes, or became a standby: other connections to it are worth nothing either.
_HOST_GONE = frozenset({"57P01", "57P02", "57P03", "25006"})
# A statement that was prepared is not there, or is there already: what is between forwards names as they are.
_NOT_PREPARED = frozenset({"26000", "42P05"})
_POOLER = (
    "what stands between this service and the database does not keep prepared statements; that should be "
    "PgBouncer 1.21 or newer with max_prepared_statements above 0, or a pooler in session mode"
)
_LOST = "the connection to the database was lost within a transaction"
# How often the log repeats what the driver says of lost connections.
_TELL_SECONDS = 10.0


@dataclass(slots=True)
class _Course:
    """How far a transaction came."""

    began_at: float | None = None
    is_committing: bool = False

    def stood_still(self, now: float) -> bool:
        """Whether its connection, if that is lost, may have been ended because this process stood still. Then
        nothing of it was committed: it had not asked for that."""
        return self.began_at is not None and not self.is_committing and now - self.began_at >= IDLE_SECONDS


class PostgresStore:
    """See `store.Store`. Connects when it is first used. `idle_seconds` may pass between two statements of a
    transaction; 0: IDLE_SECONDS. `reread` gives the URL as it is now, for when no connection can be made by
    the one that was used."""

    is_shared = True

    def __init__(
        self,
        url: str,
        *,
        statement_seconds: float = STATEMENT_SECONDS,
        idle_seconds: float = 0.0,
        reread: Callable[[], str] | None = None,
    ) -> None:
        self._url = url
        self._reread = reread
        self._hosts = deque(hosts_of(url))
        self._arguments: dict[str, Any] = {
            "timeout": CONNECT_SECONDS,
            # No others: a pooler refuses what it does not know, or takes it without heeding it.
            "server_settings": {"application_name": "cloudhub"},
            "connection_class": bounded(
                {
                    "statement_timeout": _ms(statement_seconds),
                    "lock_timeout": _ms(LOCK_SECONDS),
                    "idle_in_transaction_session_timeout": _ms(idle_seconds or IDLE_SECONDS),
                    # Short statements on rows by their keys: compiling costs more than it saves.
                    "jit": "off",
                    # Where few keys have most rows, the planner takes reading the whole table for cheaper
                    # than some index entries, and others wait for the rows that are locked meanwhile.
                    "enable_seqscan": "off",
                }
            ),
        }
        self._limits_checked = False
        self._told_at = -_TELL_SECONDS
        self._choose_primary()
        self._seconds = max(TRANSACTION_SECONDS, statement_seconds)
        # Twice where the URL may turn out to have changed.
        dials = (len(self._hosts) + 1) * (1 if reread is None else 2)
        self._connect_seconds = POOL_SECONDS + CONNECT_SECONDS * dials
        # Connections made before the last time a host was found gone are not used again.
        self._generation = 0
        self._engine = self._new_engine()
        self._reader = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._running: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def _choose_primary(self) -> None:
        if "target_session_attrs" in parse_qs(urlsplit(self._url).query):
            self._arguments.pop("target_session_attrs", None)
        else:
            self._arguments["target_session_attrs"] = "read-write"

    def _new_engine(self) -> AsyncEngine:
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            isolation_level="READ COMMITTED",
            pool_size=POOL_CONNECTIONS,
            max_overflow=0,
            pool_timeout=POOL_SECONDS,
            pool_use_lifo=True,
            hide_parameters=True,
        )

        @event.listens_for(engine.sync_engine, "connect")
        def connected(_: Any, record: Any) -> None:
            record.info["generation"] = self._generation

        @event.listens_for(engine.sync_engine, "checkout")
        def checked_out(_: Any, record: Any, __: Any) -> None:
            if record.info["generation"] != self._generation:
                raise DisconnectionError("the connection is from before its host was lost")

        return engine

    async def _connect(self) -> BoundedConnection:
        """By the present URL, else by the one that its file holds now."""
        tried = self._url
        try:
            return await self._dial()
        except StoreUnavailable:
            # Another connection may have found the newer one meanwhile.
            if self._url == tried and not await self._renewed():
                raise
        return await self._dial()

    async def _renewed(self) -> bool:
        """Whether the file of the URL holds another one, which is used from here on."""
        if self._reread is None:
            return False
        try:
            url = await asyncio.to_thread(self._reread)
            hosts = deque(hosts_of(url))
        except StartupError as error:
            _log.warning("database.url_kept", reason=str(error))
            return False
        if url == self._url:
            return False
        self._url, self._hosts = url, hosts
        self._choose_primary()
        _log.info("database.url_renewed", database=shown(url))
        return True

    async def _dial(self) -> BoundedConnection:
        """To the first host that takes writes, beginning with the one that did last."""
        last: Exception | None = None
        for _ in range(len(self._hosts)):
            try:
                connection: BoundedConnection = await asyncpg.connect(self._hosts[0], **self._arguments)
                await self._check_limits(connection)
                return connection
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
                last = error
                self._hosts.rotate(-1)
            except ValueError:
                # Its text and its traceback would show parts of the URL.
                raise StoreUnavailable(
                    "what stands behind the ? of its URL cannot be used; see asyncpg.connect for what can"
                ) from None
        raise StoreUnavailable(f"no host takes writes: {_said(last)}") from last

    async def _check_limits(self, connection: BoundedConnection) -> None:
        """Once per store: says whether the time limits hold where it is connected to."""
        if self._limits_checked:
            return
        self._limits_checked, usable, in_force = True, False, None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                in_force = await connection.limits_in_force()
            usable = True
        except asyncpg.QueryCanceledError:
            usable = True  # a slow server that keeps to a limit; the next connection asks again
        finally:
            self._limits_checked = in_force is not None
            if not usable:
                connection.terminate()
        if in_force is None:
            return
        if wrong := missing(connection.limits, in_force):
            _log.warning("database.time_limits_missing", reason="; ".join(wrong))
        else:
            _log.info("database.time_limits", set_by=set_by(in_force), **connection.limits)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """See `store.Store.write`."""
        return await self._owned(self._engine, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """See `store.Store.read`."""
        return await self._owned(self._reader, work)

    async def _owned(self, engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
        """Runs it in a task that outlives a cancelled caller: cancelling would cost the connection."""
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        task = asyncio.create_task(self._repeated(engine, work), name="store-transaction")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_forget)
            raise

    async def _repeated(self, engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TRANSACTION_SECONDS
        for attempt in range(1, _ATTEMPTS):
            course = _Course()
            try:
                return await self._transaction(engine, work, course)
            except StoreUnavailable as error:
                if _state(error.__cause__) not in _IN_THE_WAY and not (
                    course.stood_still(loop.time()) and _is_lost(error.__cause__) and loop.time() < deadline
                ):
                    raise
            await asyncio.sleep(_RETRY.random_delay(attempt))
        return await self._transaction(engine, work, _Course())

    async def _transaction(self, engine: AsyncEngine, work: Callable[[Connection], T], course: _Course) -> T:
        generation = self._generation
        try:
            async with asyncio.timeout(self._connect_seconds):
                connection = await engine.connect()
            generation = self._generation
            try:
                course.began_at = asyncio.get_running_loop().time()
                async with asyncio.timeout(self._seconds), connection.begin():
                    found = await connection.run_sync(work)
                    course.is_committing = True
                return found
            finally:
                await connection.close()
        except StoreUnavailable:
            raise
        except PoolTimeout as error:
            raise StoreUnavailable(f"no connection was free for {POOL_SECONDS:g} s") from error
        except TimeoutError as error:
            if generation == self._generation:
                # It may take connections and writes, and yet never commit: a former primary whose standby was
                # promoted. The next dial begins with another host; of standbys none is chosen.
                self._hosts.rotate(-1)
                self._generation += 1
            raise StoreUnavailable("the database did not answer in time") from error
        except (*_FAULTS, OSError) as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> StoreUnavailable:
        said, state = _said(error), _state(error)
        if state == _LOCKED:
            return StoreBusy(f"rows stayed locked for {LOCK_SECONDS:g} s: {said}")
        if state.startswith(_REFUSED_CLASSES) or _is_value(error):
            return StoreRefused(f"the database refused: {said}")
        if state in _NOT_PREPARED:
            return StoreUnavailable(_POOLER)
        if _is_lost(error) or state in _HOST_GONE:
            self._generation += 1
        if not state:
            # The driver's words on its own state are for the log, not for whoever publishes.
            now = asyncio.get_running_loop().time()
            if now - self._told_at >= _TELL_SECONDS:
                self._told_at = now
                _log.warning("database.connection_lost", reason=said)
            return StoreUnavailable(_LOST)
        return StoreUnavailable(f"the database refused: {said}")

    async def close(self) -> None:
        """See `store.Store.close`."""
        self._is_closed = True
        if self._running:
            await asyncio.wait(self._running)
        await self._engine.dispose()


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))


def _state(error: BaseException | None) -> str:
    """The SQLSTATE of a server's error; empty for every other one."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(origin, "sqlstate", None) or "")


def _is_lost(error: BaseException | None) -> bool:
    """Whether the connection is gone. What the server, or a pooler, said last is not always seen."""
    if error is None or isinstance(error, TimeoutError) or _is_value(error):
        return False
    state = _state(error)
    return not state or state.startswith("08")


def _is_value(error: BaseException) -> bool:
    """Whether the driver could not make a value of a statement into one of the database's."""
    origin = error.orig.__cause__ if isinstance(error, DBAPIError) and error.orig else error
    return isinstance(origin, ValueError)


def _said(error: BaseException | None) -> str:
    origin = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(origin, TimeoutError):
        return "no answer in time"
    cause = origin.__cause__ if origin is not None and origin.__cause__ is not None else origin
    return str(cause) or type(cause).__name__


def _forget(task: asyncio.Task[Any]) -> None:
    """Takes a result that nobody waits for any more."""
    if not task.cancelled():
        task.exception()

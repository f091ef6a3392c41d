"""A PostgreSQL primary with a synchronous standby that can take over, and does."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Protocol

from demo.databases import Databases, ensured_database, migrate
from demo.postgres import PostgresFault, PostgresServer

DATABASE = "cloudhub"
SERVER_SETTINGS = {
    # Processes are killed here, not machines: what the kernel has been given is safe.
    "fsync": "off",
    "full_page_writes": "off",
    # A standby that lost its primary looks for it this often; until it is back nothing is committed.
    "wal_retrieve_retry_interval": "500ms",
    # Who waited for whom, when a publisher had to wait.
    "log_lock_waits": "on",
    "log_min_duration_statement": "2s",
}
_ATTACH_SECONDS = 20.0


class DatabaseServers(Protocol):
    """What faults are injected into. Each method raises PostgresFault."""

    @property
    def databases(self) -> Databases:
        """For the services."""
        ...

    async def start(self, logs: Path) -> None:
        """Makes the servers, and the schemas of the services."""
        ...

    async def restart(self, hold_seconds: float) -> None:
        """The primary crashes and comes back."""
        ...

    async def fail_over(self) -> None:
        """The primary is gone, and the standby takes over."""
        ...

    async def switch_over(self) -> None:
        """The standby takes over from a primary that lives."""
        ...

    async def mend(self) -> None:
        """Makes it two again."""
        ...

    async def close(self) -> None:
        """Stops all."""
        ...


class DatabasePair:
    """Two servers; each committed transaction is at both while both are there.

    Whoever starts it closes it. Raises PostgresFault.
    """

    def __init__(self, folder: Path) -> None:
        self._servers = tuple(PostgresServer(folder / name, settings=SERVER_SETTINGS) for name in ("a", "b"))
        self._primary, self._standby = self._servers
        self._url = ""
        self._is_alone = False

    @property
    def databases(self) -> Databases:
        """For the services: both hosts, whichever takes writes."""
        return Databases(self._url, self._url, self._primary.pid)

    async def start(self, logs: Path) -> None:
        """Makes both, and the schemas of the services."""
        await asyncio.to_thread(self._primary.create)
        await self._run(self._primary)
        await asyncio.to_thread(ensured_database, self._primary, DATABASE)
        self._url = self._servers[0].url(DATABASE, self._servers[1])
        await migrate(self.databases, logs)
        await self._attach()

    async def restart(self, hold_seconds: float) -> None:
        """The primary's machine crashes and comes back."""
        await asyncio.to_thread(self._primary.kill)
        await asyncio.sleep(hold_seconds)
        await self._run(self._primary)

    async def fail_over(self) -> None:
        """The primary crashes and the standby takes over, alone until `mend`."""
        await asyncio.to_thread(self._primary.kill)
        await asyncio.to_thread(self._standby.promote)
        self._primary, self._standby = self._standby, self._primary
        self._is_alone = True
        # It waits for no standby until there is one again.
        await asyncio.to_thread(self._wait_for, "")

    async def switch_over(self) -> None:
        """Nobody is there to do that in an orderly way."""
        raise PostgresFault("only Patroni's servers are switched over: --store patroni")

    async def mend(self) -> None:
        """After a failover: makes the former primary the standby."""
        if self._is_alone:
            await self._attach()
            self._is_alone = False

    async def close(self) -> None:
        """Stops both."""
        for server in (self._standby, self._primary):
            await asyncio.to_thread(server.stop)

    async def _run(self, server: PostgresServer) -> None:
        # Started by this thread: a server ends with the thread that started it.
        server.start()
        await asyncio.to_thread(server.wait_ready)

    async def _attach(self) -> None:
        """Makes the standby a copy of the primary that follows it, and has the primary wait for it."""
        await asyncio.to_thread(shutil.rmtree, self._standby.data, ignore_errors=True)
        await asyncio.to_thread(self._standby.copy_of, self._primary)
        await self._run(self._standby)
        await asyncio.to_thread(self._wait_until_it_follows)
        await asyncio.to_thread(self._wait_for, "*")

    def _wait_until_it_follows(self) -> None:
        deadline = time.monotonic() + _ATTACH_SECONDS
        while not self._primary.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"):
            if time.monotonic() > deadline:
                raise PostgresFault(f"the standby did not follow within {_ATTACH_SECONDS:g} s")
            time.sleep(0.1)

    def _wait_for(self, standbys: str) -> None:
        self._primary.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{standbys}'")
        self._primary.sql("SELECT pg_reload_conf()")

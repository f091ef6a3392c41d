"""The dispatchers of a connector: a stream to each, and which one a node goes to."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence

from cloudhub.v1 import link_pb2
from services.connector.discovery import Entry, addresses_of, dial_address, retired
from services.connector.dispatcher_stream import DispatcherStream, StreamUser
from services.connector.edge_link import LinkStream
from services.connector.metrics import ConnectorMetrics
from services.connector.rendezvous import best_dispatcher
from services.runtime.logs import get_log
from services.runtime.security import PLAINTEXT_LOOPBACK, Security

_log = get_log("connector.dispatchers")
_RESOLVE_SECONDS = 3.0

# The addresses of a host; raises OSError.
Resolve = Callable[[str], Awaitable[list[str]]]


async def resolve_host(host: str) -> list[str]:
    """All addresses of a DNS name. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in found]


class Dispatchers:
    """A stream per address: of those given, and of all that the names given have at the moment.

    An address that its name has no longer keeps its stream until that is lost. A name that cannot be resolved
    keeps the addresses that it had.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        hello: link_pb2.ConnectorHello,
        user: StreamUser,
        metrics: ConnectorMetrics,
        resolve: Resolve = resolve_host,
        resolve_seconds: float = _RESOLVE_SECONDS,
        security: Security = PLAINTEXT_LOOPBACK,
    ) -> None:
        self._hello = hello
        self._user = user
        self._metrics = metrics
        self._resolve = resolve
        self._security = security
        self._resolve_seconds = resolve_seconds
        self._fixed = frozenset(dial_address(one.host, one.port) for one in entries if one.is_address)
        self._named: dict[Entry, frozenset[str]] = {
            one: frozenset() for one in dict.fromkeys(entries) if not one.is_address
        }
        self._unresolved: set[Entry] = set()
        self._streams: dict[str, DispatcherStream] = {}
        self._told_draining = False
        self._discovering: asyncio.Task[None] | None = None

    @property
    def attached(self) -> int:
        """How many streams are up."""
        return sum(stream.attached for stream in self._streams.values())

    @property
    def streams(self) -> list[DispatcherStream]:
        """Every stream, attached or not."""
        return list(self._streams.values())

    @property
    def fit(self) -> int:
        """How many dispatchers can have links."""
        return sum(stream.fit for stream in self._streams.values())

    def choose(self, node_id: str, declined: Collection[LinkStream] = ()) -> DispatcherStream | None:
        """Where a node's new link is announced: its best dispatcher, or if none is fit the best of those that
        are attached; None if none is. Not one of those that declined it."""
        left = [stream for stream in self._streams.values() if stream.attached and stream not in declined]
        fit = [stream.address for stream in left if stream.fit]
        return self._best(node_id, fit or [stream.address for stream in left])

    def best(self, node_id: str) -> DispatcherStream | None:
        """The node's best dispatcher of those fit for links; None if none is."""
        return self._best(node_id, [address for address, stream in self._streams.items() if stream.fit])

    def _best(self, node_id: str, addresses: Sequence[str]) -> DispatcherStream | None:
        best = best_dispatcher(node_id, addresses)
        return self._streams[best] if best is not None else None

    async def run(self) -> None:
        """Finds dispatchers and keeps a stream to each up, until cancelled or finished."""
        async with asyncio.TaskGroup() as group:
            self._follow(group, self._fixed)
            if self._named:
                self._discovering = group.create_task(self._discover(group), name="discovery")

    def tell_draining(self) -> None:
        """Tells every dispatcher, those attached later too, that this connector takes no new links."""
        self._told_draining = True
        for stream in self._streams.values():
            stream.tell_draining()

    async def finish(self, seconds: float) -> None:
        """Ends every stream cleanly."""
        if self._discovering:
            self._discovering.cancel()
        await asyncio.gather(*(stream.finish(seconds) for stream in self._streams.values()))

    async def _discover(self, group: asyncio.TaskGroup) -> None:
        while True:
            for entry in self._named:
                await self._look_up(entry)
            self._follow(group, self._fixed.union(*self._named.values()))
            await asyncio.sleep(self._resolve_seconds)

    async def _look_up(self, entry: Entry) -> None:
        try:
            self._named[entry] = addresses_of(entry, await self._resolve(entry.host))
        except OSError as error:
            if entry not in self._unresolved:
                self._unresolved.add(entry)
                _log.warning("dispatchers.unresolved", host=entry.host, error=str(error))
        else:
            self._unresolved.discard(entry)

    def _follow(self, group: asyncio.TaskGroup, found: frozenset[str]) -> None:
        for address in sorted(found - self._streams.keys()):
            stream = DispatcherStream(
                address, self._hello, self._user, self._metrics, security=self._security
            )
            self._streams[address] = stream
            if self._told_draining:
                stream.tell_draining()
            group.create_task(self._keep(stream), name=f"stream {address}")
        gone = retired(self._streams, found)
        for address, stream in self._streams.items():
            stream.retire(address in gone)

    async def _keep(self, stream: DispatcherStream) -> None:
        await stream.run()
        if self._streams.get(stream.address) is stream and not stream.finishing:
            del self._streams[stream.address]

"""Ends TLS before a gRPC server of this process, and so knows why a client's certificate is not taken.

gRPC's own TLS can require a certificate and closes the connection of whoever has none that is good, without
a word to either side. Here everybody's handshake is finished; then good connections are carried to the server
and the others to one that has nothing but refusals, over sockets in a directory that only its user can enter.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography import x509
from prometheus_client import Counter

from services.runtime.caller_shares import TOO_MANY_CALLS, CallerLimits, CallerShares, Party
from services.runtime.callers import Caller, Callers, connection_name, judge
from services.runtime.errors import Crowded, HubError
from services.runtime.failure_log import FailureLog
from services.runtime.front_connection import LINGER_SECONDS, FrontConnection, InnerSide, Phase
from services.runtime.http2_calls import HttpCalls
from services.runtime.interceptor import trailers_of
from services.runtime.logs import get_log
from services.runtime.names import shown
from services.runtime.openings import OpeningLimits, Openings
from services.runtime.rate_limit import RateLimit, network_of
from services.runtime.refusals import AUDIT_LOG, Refusals
from services.runtime.refused_calls import RefusedCalls
from services.runtime.roles import Role
from services.runtime.server_tls import ServerTls
from services.runtime.tls_faults import TlsFault

SERVED = "grpc"
REFUSING = "refused"
"""Names of the servers' sockets."""

_log = get_log(AUDIT_LOG)
_BACKLOG = 1024
_HANDSHAKE_SECONDS = 10.0
# Of 256 handshakes in progress, one that has had a second makes room. Those that have sent nothing cost a
# descriptor.
_OPENINGS = OpeningLimits(max_openings=256, max_waiting=1024, hurried=1.0)
_TURN_SECONDS = 0.1
_MOST_REFUSED = 64
# Handshakes are done on the event loop, one to two milliseconds each: what one network, or all together, may
# take of it on average, and how many come at once when replicas and programs return after a restart.
_NETWORK_PER_SECOND, _NETWORK_BURST = 100.0, 500
_ALL_PER_SECOND, _ALL_BURST = 250.0, 1000
# Each refused connection costs as much again, and calls on it come to nothing.
_REFUSED_PER_SECOND, _REFUSED_BURST = 20.0, 100


def _nothing() -> None:
    """There is nothing to take back."""


class TlsFront:
    """Listens for clients of one gRPC server. `present` gives what new connections shake hands with;
    `callers` has a row for each connection that the servers see. Closed by `stop_accepting`, then `close`."""

    def __init__(
        self,
        present: Callable[[], ServerTls],
        callers: Callers,
        refusals: Refusals,
        failed: Counter | None = None,
        limits: CallerLimits | None = None,
    ) -> None:
        """`failed` counts handshakes that came to nothing, by reason."""
        self._present = present
        self._callers = callers
        self._failed = failed
        self._refusals = refusals
        self.shares = CallerShares(limits or CallerLimits())
        # Whoever is refused calls nothing, and says no more than it takes to hear why.
        self._unknown = CallerShares(CallerLimits(max_calls_per_caller=1 << 31, max_request_bytes=1 << 62))
        self._folder = Path()
        self._servers: list[asyncio.Server] = []
        self._connections: set[FrontConnection] = set()
        self._openings: Openings[FrontConnection] = Openings(_OPENINGS)
        self._turns: asyncio.TimerHandle | None = None
        self._giving = False
        self._parties: dict[FrontConnection, Party] = {}
        self._refused: dict[FrontConnection, None] = {}  # the oldest first
        self._joining: set[asyncio.Task[None]] = set()
        self._of_networks = RateLimit(_NETWORK_PER_SECOND, _NETWORK_BURST)
        self._of_all = RateLimit(_ALL_PER_SECOND, _ALL_BURST)
        self._refused_calls = RefusedCalls()
        self._of_refused = RateLimit(_REFUSED_PER_SECOND, _REFUSED_BURST)
        self._number = 0
        self._failures = FailureLog(_log, "handshake.failed")
        self._unfollow: Callable[[], None] = _nothing
        self._none_left = asyncio.Event()
        self._none_left.set()

    @property
    def connections(self) -> int:
        """How many there are, those in a handshake included."""
        return len(self._connections)

    @property
    def handshakes(self) -> int:
        """Of these, how many are in a handshake."""
        return self._openings.at_work

    @property
    def silent(self) -> int:
        """Of these, how many have not begun one."""
        return self._openings.waiting

    async def start(self, sockets: Sequence[socket.socket], folder: Path) -> None:
        """Accepts on `sockets`, which are the front's from here on. In `folder` listen the servers: SERVED
        for clients whose certificate is good, REFUSING for all others."""
        self._folder = folder
        loop = asyncio.get_running_loop()
        self._unfollow = self._present().revocations.follow(self._end_revoked)
        for one in sockets:
            self._servers.append(await loop.create_server(self._connection, sock=one, backlog=_BACKLOG))

    def _connection(self) -> FrontConnection:
        return FrontConnection(self, _HANDSHAKE_SECONDS)

    def stop_accepting(self) -> None:
        """No new connections, and no handshakes any more."""
        for server in self._servers:
            server.close()
        for connection in tuple(self._connections):
            if connection.shakes_hands:
                connection.abort()

    async def close(self) -> None:
        """Once the servers behind have stopped: what they said last goes out; then nothing is left."""
        self.stop_accepting()
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self._none_left.wait()
        except TimeoutError:
            for connection in tuple(self._connections):
                connection.abort()
            await self._none_left.wait()
        if self._joining:
            await asyncio.wait(self._joining)
        self._failures.close()
        self._unfollow()
        self._unfollow = _nothing
        if self._turns is not None:
            self._turns.cancel()

    # front_connection.FrontHost.

    def connected(self, connection: FrontConnection) -> bool:
        network, now = network_of(connection.host), asyncio.get_running_loop().time()
        gone = self._openings.arrive(connection, network, now)
        if gone is not None:
            self._turned_away("silent_many", "too many connections that say nothing", gone.host)
        if gone is connection:
            return False
        if gone is not None:
            gone.abort()
        self._connections.add(connection)
        self._none_left.clear()
        return True

    def heard(self, connection: FrontConnection) -> bool:
        network, now = network_of(connection.host), asyncio.get_running_loop().time()
        if self._of_networks.take(network, now):
            self._turned_away("handshake_rate_address", "too many handshakes of one address", connection.host)
            return False
        if self._of_all.take("", now):
            self._turned_away("handshake_rate", "too many handshakes")
            return False
        self._openings.heard(connection, now)
        self._give_turns()
        return connection.phase is not Phase.GONE

    def _opening_ended(self, connection: FrontConnection) -> None:
        self._openings.end(connection)
        if self._openings.ready:
            self._give_turns()

    def _give_turns(self) -> None:
        if self._giving:
            # A handshake that ended at once; the loop below goes on.
            return
        self._giving = True
        if self._turns is not None:
            self._turns.cancel()
            self._turns = None
        loop = asyncio.get_running_loop()
        while (turn := self._openings.next_turn(loop.time())) is not None:
            if turn.gives_way is not None:
                turn.gives_way.out_of_time(_OPENINGS.hurried)
            turn.begins.shake_hands(self._present())
        self._giving = False
        if self._openings.ready:
            self._turns = loop.call_later(_TURN_SECONDS, self._give_turns)

    def _turned_away(self, reason: str, detail: str, host: str = "") -> None:
        """Told once per reason, or with a host once per host and reason, and counted."""
        self._count(reason)
        facts: dict[str, Any] = {"address": host} if host else {}
        self._failures.add(reason, by=host, detail=detail, logger=AUDIT_LOG, **facts)

    def shaken_hands(self, connection: FrontConnection) -> None:
        self._opening_ended(connection)
        task = asyncio.create_task(self._join(connection), name="join gRPC")
        self._joining.add(task)
        task.add_done_callback(self._joining_ended)

    def _joining_ended(self, task: asyncio.Task[None]) -> None:
        self._joining.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The connection is cut when its time is up.
            task.get_loop().call_exception_handler({"message": "cannot join gRPC", "exception": error})

    async def _join(self, connection: FrontConnection) -> None:
        self._number += 1
        connection.name = connection_name(self._number, connection.address)
        caller = self._admit(connection, self._judge(connection))
        if caller.refusal is not None and not self._take_refused(connection, caller.refusal):
            connection.abort()
            return
        self._callers.add(connection.name, caller)
        inside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            inside.setblocking(False)
            self._connect(inside, connection.name, SERVED if caller.refusal is None else REFUSING)
            _, inner = await asyncio.get_running_loop().create_unix_connection(
                lambda: InnerSide(connection), sock=inside
            )
            inner.join()
        except OSError as error:
            # The server behind has stopped, or has no room.
            inside.close()
            _log.warning("connection.not_joined", address=caller.address, error=str(error), logger=AUDIT_LOG)
            connection.abort()
        if connection.phase is Phase.GONE:
            self._forget(connection)

    def _judge(self, connection: FrontConnection) -> Caller:
        tls = connection.secured_by
        shown: Sequence[x509.Certificate] | TlsFault
        try:
            shown = connection.tls.shown()
        except TlsFault as fault:
            shown = fault
        return judge(connection.address, shown, tls.trusted, tls.authorities, tls.revocations.refusal)

    def _end_revoked(self) -> None:
        """The list has changed: connections of who is on it now end, with their calls."""
        for connection in tuple(self._connections):
            caller = self._callers.at(connection.name) if connection.name else None
            if caller is None or caller.refusal is not None or caller.identity is None:
                continue
            refusal = connection.secured_by.revocations.refusal(caller.identity)
            if refusal is not None:
                # Calls that gRPC has taken and nobody has looked at yet.
                self._callers.add(connection.name, replace(caller, refusal=refusal))
                calls = len(connection.calls) if connection.calls is not None else 1
                self._refusals.tell(caller, refusal, max(calls, 1), ended="connection")
                connection.say_goodbye(refusal)

    def _admit(self, connection: FrontConnection, caller: Caller) -> Caller:
        """With its share, if it is counted; or with why it has none."""
        if caller.refusal is not None or caller.identity is None or Role.SERVICE in caller.identity.roles:
            return caller
        name = caller.identity.name
        wait = self._refused_calls.wait_seconds(name, asyncio.get_running_loop().time())
        if wait:
            detail = f"{shown(name)} went on after its calls were refused: connect again in {int(wait) + 1} s"
            return replace(caller, refusal=Crowded(TOO_MANY_CALLS, detail))
        party = self.shares.connect(name)
        if isinstance(party, HubError):
            return replace(caller, refusal=party)
        self._parties[connection] = party
        connection.calls = HttpCalls(party, trailers_of)
        return caller

    def _take_refused(self, connection: FrontConnection, refusal: HubError) -> bool:
        """Whether it may hear why it is refused."""
        if self._of_refused.take(network_of(connection.host), asyncio.get_running_loop().time()):
            self._turned_away(
                "refused_rate_address", "too many refused connections of one address", connection.host
            )
            return False
        if len(self._refused) >= _MOST_REFUSED:
            oldest = next(iter(self._refused))
            del self._refused[oldest]
            oldest.abort()
        self._refused[connection] = None
        connection.refusal = refusal
        connection.calls = HttpCalls(Party(self._unknown, ""), trailers_of)
        return True

    def calls_refused(self, connection: FrontConnection, refusal: HubError, calls: int) -> None:
        caller = self._callers.at(connection.name)
        if caller is not None:
            self._refusals.tell(caller, refusal, calls)
        party = self._parties.get(connection)
        if party is not None:
            self._refused_calls.add(party.name, calls, asyncio.get_running_loop().time())

    def _connect(self, inside: socket.socket, name: str, server: str) -> None:
        """The name is what gRPC calls the peer; nobody needs to find it in the directory."""
        path = self._folder / name
        inside.bind(str(path))
        try:
            inside.connect(str(self._folder / server))
        finally:
            path.unlink()

    def handshake_failed(self, connection: FrontConnection, fault: TlsFault) -> None:
        self._opening_ended(connection)
        self._count(fault.reason)
        if connection.heard:
            # Who only looks whether the port is open is counted.
            self._failures.add(
                fault.reason,
                by=connection.host,
                address=connection.address,
                detail=fault.detail,
                logger=AUDIT_LOG,
            )

    def _count(self, reason: str) -> None:
        if self._failed is not None:
            self._failed.labels(reason).inc()

    def gone(self, connection: FrontConnection) -> None:
        self._opening_ended(connection)
        self._forget(connection)
        self._connections.discard(connection)
        if not self._connections:
            self._none_left.set()

    def _forget(self, connection: FrontConnection) -> None:
        self._refused.pop(connection, None)
        self._callers.remove(connection.name)
        if connection.calls is not None:
            connection.calls.close()
            connection.calls = None
        party = self._parties.pop(connection, None)
        if party is not None:
            self.shares.disconnect(party)

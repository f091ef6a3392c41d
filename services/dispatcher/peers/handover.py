"""Tells the owners of nodes what was committed for them here, with the messages themselves."""

import asyncio
import random

from cloudhub.v1.resources_pb2 import DispatcherResources
from services.dispatcher.outbox.records import ObjectRow
from services.dispatcher.peers.directory import Peers
from services.dispatcher.peers.hints import MOST_WAITING_BYTES, Hint, HintQueue
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.sessions_client import MOST_PER_CALL, SessionsClient
from services.runtime.backoff import Backoff
from services.runtime.clock import Clock
from services.runtime.errors import HubError
from services.runtime.logs import get_log

_log = get_log(__name__)

MOST_WAITING = 65_536
RETRY = Backoff(0.1, 2.0)


class Handover:
    """Finds each node's dispatcher and hints it. `run` must be awaited by the owner.

    A hint may be lost anywhere on this way: the owner's sweep finds what it would have told.
    """

    def __init__(self, peers: Peers, sessions: SessionsClient, clock: Clock, metrics: PeerMetrics) -> None:
        self._peers = peers
        self._sessions = sessions
        self._clock = clock
        self._metrics = metrics
        self._queue = HintQueue(MOST_WAITING)
        self._wake = asyncio.Event()

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.hints += len(self._queue)

    def changed(self, node_id: str, last_seq: int, row: ObjectRow | None = None) -> None:
        """Rows of a node without a session here were changed here, for example `row` accepted; `last_seq` 0:
        by what is unknown."""
        if not self._peers:
            return
        if self._queue.add(node_id, Hint(last_seq, [row] if row is not None else [])):
            self._wake.set()
        else:
            self._metrics.hints.labels("dropped").inc()

    async def run(self) -> None:
        """Hands on until cancelled."""
        failures = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while hints := self._queue.take(MOST_PER_CALL, MOST_WAITING_BYTES):
                try:
                    await self._hand_on(hints)
                    failures = 0
                except HubError as error:
                    failures += 1
                    self._metrics.hints.labels("dropped").inc(len(hints))
                    _log.debug("handover.look_up_failed", error=str(error))
                    await asyncio.sleep(RETRY.delay(failures, random.random()))

    async def _hand_on(self, hints: list[tuple[str, Hint]]) -> None:
        now, locations = self._clock.monotonic(), self._peers.locations
        unknown = [node_id for node_id, _ in hints if locations.find(node_id, now) is None]
        if unknown:
            found = await self._sessions.locate(unknown)
            now = self._clock.monotonic()
            for node_id in unknown:
                session = found.get(node_id)
                locations.learn(node_id, session.dispatcher_id if session else "", now)
        nowhere = 0
        for node_id, hint in hints:
            peer = self._peers.get(locations.find(node_id, now) or "")
            if peer is None:
                nowhere += 1
            else:
                peer.hint(node_id, hint)
        if nowhere:
            self._metrics.hints.labels("no_session").inc(nowhere)

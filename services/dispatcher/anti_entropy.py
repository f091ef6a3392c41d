"""Holds this dispatcher's sessions against the registry's record of them, and settles what stays apart.

Neither side is read at one instant, and sessions open, move and end meanwhile; so one look proves nothing.
The registry decides. A session that it does not have here is ended here, its link closed with
DISPATCHER_LOST, and the edge comes back. A session that it has here and that is not here is closed there
with the same reason, and told as `disconnected`.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cloudhub.v1.link_pb2 import CLOSE_REASON_DISPATCHER_LOST
from services.dispatcher.delivery import Delivery
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.openings import Openings
from services.dispatcher.session_ends import SessionEnds
from services.dispatcher.sessions_client import SessionsClient
from services.dispatcher.stranded import Stranded
from services.runtime.clock import Clock
from services.runtime.errors import HubError
from services.runtime.logs import get_log

_log = get_log(__name__)

Known = tuple[str, int]  # a node and the epoch of its session


@dataclass(frozen=True, slots=True)
class Settlement:
    """What has been apart for long enough."""

    unknown_to_registry: list[Known]
    not_here: list[Known]


class Disagreements:
    """What was apart at every look so far, and since when. Pure.

    A session that is here and not in the registry is settled at the second look. One that the registry has
    here and that is not is left alone for a lease: it may be opening, or its link on the way back; and as
    long as the registry is being told that it has ended.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._unknown: set[Known] = set()
        self._not_here: dict[Known, float] = {}

    def __bool__(self) -> bool:
        return bool(self._unknown or self._not_here)

    def look(
        self,
        registry: Mapping[str, int],
        here: Mapping[str, int],
        now: float,
        closing: Collection[Known] = (),
    ) -> Settlement:
        """Compares; what is given back is not given back again unless it is found anew. `closing` are those
        of which the registry may not have heard yet that they have ended."""
        unknown = here.items() - registry.items()
        missing = (registry.items() - here.items()).difference(closing)
        not_here = {known: self._not_here.get(known, now) for known in missing}
        settled = Settlement(
            sorted(unknown & self._unknown),
            sorted(known for known, since in not_here.items() if now - since >= self._lease_seconds),
        )
        self._unknown = unknown.difference(settled.unknown_to_registry)
        self._not_here = {known: not_here[known] for known in not_here.keys() - set(settled.not_here)}
        return settled


class AntiEntropy:
    """The shell. `run` must be awaited by the owner.

    Looks are two thirds of a lease apart and, while something is apart, one third: a session that the
    registry does not have is found out and ended within a lease.
    """

    def __init__(
        self,
        delivery: Delivery,
        sessions: SessionsClient,
        ends: SessionEnds,
        stranded: Stranded,
        openings: Openings,
        clock: Clock,
        metrics: DispatcherMetrics,
        lease_seconds: float,
    ) -> None:
        self._delivery = delivery
        self._sessions = sessions
        self._ends = ends
        self._stranded = stranded
        self._openings = openings
        self._clock = clock
        self._metrics = metrics
        self._lease_seconds = lease_seconds
        self._disagreements = Disagreements(lease_seconds)

    async def run(self) -> None:
        """Looks until cancelled, or until this dispatcher drains: then it lets sessions go for others."""
        while not self._openings.draining:
            await asyncio.sleep(self._lease_seconds / 3 * (1 if self._disagreements else 2))
            try:
                await self.look()
            except HubError as error:
                _log.debug("anti_entropy.put_off", error=str(error))

    async def look(self) -> None:
        """Compares once and settles what is due; raises HubError if sessions does not answer."""
        closing = self._ends.closing()
        registry = await self._sessions.held()
        if self._openings.draining:
            return
        settled = self._disagreements.look(registry, self._here(), self._clock.monotonic(), closing)
        for node_id, epoch in settled.unknown_to_registry:
            if self._end_here(node_id, epoch):
                self._report("unknown_to_registry", node_id, epoch)
        for node_id, epoch in settled.not_here:
            self._ends.close(node_id, epoch, CLOSE_REASON_DISPATCHER_LOST)
            self._report("not_here", node_id, epoch)

    def _here(self) -> dict[str, int]:
        """Sessions of this dispatcher, those included that are being opened or wait for their link."""
        return self._stranded.epochs() | {
            node_id: session.epoch for node_id, session in self._delivery.sessions.items()
        }

    def _end_here(self, node_id: str, epoch: int) -> bool:
        """False if the session is not admitted yet; then whoever opens it finds out."""
        session = self._delivery.sessions.get(node_id)
        detail = "sessions has no such session of this dispatcher"
        if session is not None and session.epoch == epoch and session.active:
            self._ends.end(session, CLOSE_REASON_DISPATCHER_LOST, detail, close_link=True)
            return True
        if self._stranded.holds(node_id, epoch):
            self._stranded.end(node_id, CLOSE_REASON_DISPATCHER_LOST, detail)
            return True
        return False

    def _report(self, what: str, node_id: str, epoch: int) -> None:
        self._metrics.disagreements.labels(what).inc()
        _log.warning("session.disagreed", node=node_id, epoch=epoch, what=what)

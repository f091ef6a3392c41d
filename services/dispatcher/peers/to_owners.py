"""Publishes on their way to the store: by the dispatcher that has the node's session, else from here.

Whoever sends a node's messages and records what came of them should write them too: then no two
dispatchers wait for each other at the node's row, what the owner knows of its rows stays true, and no
hand-over is needed. Nothing depends on it: where the owner is unknown or away, the message is stored from
here and the owner hinted.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from typing import Protocol

from cloudhub.v1.dispatcher_pb2 import NodeOutcome
from cloudhub.v1.resources_pb2 import DispatcherResources
from services.dispatcher.outbox.records import Accept, Event, Op, Result
from services.dispatcher.outbox.turns import LARGE_OPERATIONS
from services.dispatcher.peers.directory import Peers
from services.dispatcher.peers.forwards import Forwards
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.peers.ways import Ways
from services.dispatcher.publication import Publication
from services.runtime.clock import Clock
from services.runtime.errors import HubError, Unavailable

Answer = Result | Exception | NodeOutcome

# Of these, what is submitted in a large group finds half: others still find room beside it.
MOST_UNDER_WAY = 100_000

Answered = Callable[[int, Answer], None]
# Whom to tell of which of the operations submitted together.
Item = tuple[Answered, int, Op]
Way = Forwards[Item]


class Writer(Protocol):
    """The way from here."""

    def submit(self, ops: list[Op], done: Callable[[list[Result | Exception]], None]) -> None:
        """See `outbox.writer.OutboxWriter.submit`."""
        ...


def may_be_repeated(publication: Publication) -> bool:
    """Whether a publish can be written a second time, any time later, without harm: its version or its uid
    says that it is an old one. An answer is known by nothing, a delete without a uid means whatever object
    its path has by then, and one that is completed from what is stored was not checked by itself. Pure."""
    if publication.is_answer or publication.incomplete:
        return False
    return bool(publication.uid) or not publication.is_delete


class ToOwners:
    """Implements `publishing.Submit`."""

    def __init__(
        self,
        sessions: Container[str],
        writer: Writer,
        peers: Peers,
        clock: Clock,
        metrics: PeerMetrics,
    ) -> None:
        self._sessions = sessions
        self._writer = writer
        self._peers = peers
        self._clock = clock
        self._metrics = metrics
        self._ways: Ways[Way | None, Item] = Ways()
        self._under_way = 0

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.outbox_operations += self._under_way

    def submit(self, ops: list[Op], answered: Answered) -> None:
        """See `publishing.Submit`."""
        if not self._peers and not self._ways:

            def done(results: Sequence[Result | Exception]) -> None:
                for place, result in enumerate(results):
                    answered(place, result)

            self._writer.submit(ops, done)
            return
        most = MOST_UNDER_WAY if len(ops) <= LARGE_OPERATIONS or not self._under_way else MOST_UNDER_WAY // 2
        if self._under_way + len(ops) > most:
            raise Unavailable("OVERLOADED", f"{self._under_way} operations are on their way to the store")
        now = self._clock.monotonic()
        going: defaultdict[Way | None, list[Item]] = defaultdict(list)
        self._under_way += len(ops)
        for place, op in enumerate(ops):
            item = (answered, place, op)
            if isinstance(op, Event):
                going[None].append(item)  # a line of history has no place in the node's order
            elif self._ways.enter(op.node_id, way := self._way(op, now), item):
                going[way].append(item)
        self._go(going)

    def _way(self, op: Op, now: float) -> Way | None:
        """None: from here."""
        if not isinstance(op, Accept) or op.node_id in self._sessions or not may_be_repeated(op.publication):
            return None
        peer = self._peers.get(self._peers.locations.find(op.node_id, now) or "")
        return peer.forwards if peer is not None else None

    def _go(self, going: dict[Way | None, list[Item]]) -> None:
        for way, items in going.items():
            if way is None:
                self._write(items)
            else:
                way.add([(item, item[2]) for item in items if isinstance(item[2], Accept)])

    def _write(self, items: Sequence[Item]) -> None:
        def done(results: Sequence[Result | Exception]) -> None:
            self._came_back(list(zip(items, results, strict=True)))

        try:
            self._writer.submit([op for _, _, op in items], done)
        except HubError as error:
            done([error] * len(items))

    def _came_back(self, answered: Sequence[tuple[Item, Answer]]) -> None:
        self._under_way -= len(answered)
        released: defaultdict[Way | None, list[Item]] = defaultdict(list)
        for (tell, place, op), answer in answered:
            tell(place, answer)
            if not isinstance(op, Event):
                for way, item in self._ways.left(op.node_id):
                    released[way].append(item)
        if released:
            self._go(released)

    # -- what peers say ----------------------------------------------------------------------------

    def answered(self, way: Way, outcomes: Sequence[NodeOutcome], not_here: Sequence[str]) -> None:
        """The owner has written what these are about."""
        answered = way.answered(outcomes)
        self._metrics.owners.labels("answered").inc(len(answered))
        now, locations = self._clock.monotonic(), self._peers.locations
        for node_id in {op.node_id for (_, _, op), _ in answered}:
            locations.learn(node_id, way.dispatcher_id, now)
        locations.forget(not_here)
        self._came_back(answered)

    def returned(self, items: Sequence[Item]) -> None:
        """Their stream ended before they were answered: they are written from here, whether they were
        written there or not."""
        self._metrics.owners.labels("returned").inc(len(items))
        nodes = {op.node_id for _, _, op in items}
        self._peers.locations.forget(nodes)
        for node_id in nodes:
            self._ways.turn(node_id, None)
        self._write(items)

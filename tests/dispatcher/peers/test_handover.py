"""Whom hints go to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from prometheus_client import CollectorRegistry

from services.dispatcher.peers.directory import Peers
from services.dispatcher.peers.handover import Handover
from services.dispatcher.peers.hints import Hint
from services.dispatcher.peers.locations import Locations
from services.dispatcher.peers.metrics import PeerMetrics
from tests.support.dispatcher import FakeSessions, SteppedClock
from tests.support.processes import eventually


class OnePeer:
    """A directory with one other dispatcher, `d1`, that writes down its hints."""

    def __init__(self) -> None:
        self.locations = Locations()
        self.hinted: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return 1

    def get(self, dispatcher_id: str) -> Any:
        return self if dispatcher_id == "d1" else None

    def hint(self, node_id: str, hint: Hint) -> None:
        self.hinted.append((node_id, hint.last_seq))


class Bench:
    def __init__(self) -> None:
        self.peers, self.sessions, self.clock = OnePeer(), FakeSessions(), SteppedClock()
        self.registry = CollectorRegistry()
        self.handover = Handover(
            cast("Peers", self.peers), self.sessions, self.clock, PeerMetrics(self.registry)
        )

    def count(self, outcome: str) -> float:
        name = "cloudhub_dispatcher_peers_hints_total"
        return self.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


@asynccontextmanager
async def working() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.create_task(bench.handover.run())
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_hints_go_to_the_dispatcher_that_has_the_node() -> None:
    """C34: all nodes are looked up together, and not again while what was heard is young."""
    async with working() as bench:
        bench.sessions.connected = {"far", "other", "here"}
        bench.sessions.held_by = {"far": "d1", "other": "d2"}
        for node_id in ("far", "other", "here", "absent"):
            bench.handover.changed(node_id, 3)
        await eventually(lambda: bench.count("no_session") == 3)
        assert bench.peers.hinted == [("far", 3)]
        bench.handover.changed("far", 4)
        await eventually(lambda: len(bench.peers.hinted) == 2)
        assert len(bench.sessions.asked) == 1
        bench.clock.advance(5)
        bench.handover.changed("far", 5)
        await eventually(lambda: len(bench.peers.hinted) == 3)
        assert bench.sessions.asked[1] == ["far"]


async def test_hints_are_dropped_while_sessions_is_away_and_go_on_after() -> None:
    """The owner's sweep finds what they would have told."""
    async with working() as bench:
        bench.sessions.connected, bench.sessions.held_by = {"far"}, {"far": "d1"}
        bench.sessions.away = True
        bench.handover.changed("far", 1)
        await eventually(lambda: bench.count("dropped") == 1)
        bench.sessions.away = False
        bench.handover.changed("far", 2)
        await eventually(lambda: bench.peers.hinted == [("far", 2)])

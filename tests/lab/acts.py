"""Acts of a scenario: what the edges that behave well experience in a part of it, as a row of the table."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from chaos.history import Outcome
from demo.latency import Latencies
from tests.lab.scenario import OTHERS, Scenario
from tests.lab.table import Row

# Fleets report every 0.2 s what they have acknowledged.
_REPORT_SECONDS = 0.3


class Act:
    """Made by `measured`; the figures are there when its block is left."""

    def __init__(self, scenario: Scenario, title: str) -> None:
        self._scenario = scenario
        self._title = title
        self._fleet = scenario.fleet(OTHERS)
        self._latencies = self._fleet.latencies.counts()
        self._acknowledged = self._fleet.report.acknowledged
        self._repeated = self._fleet.report.repeated
        self._published = [len(publisher.history) for publisher in scenario.scene.publishers]
        self._direct = len(scenario.direct.history)
        self.p50_ms: float | None = None
        self.p99_ms: float | None = None
        self.note = ""

    def ends(self) -> None:
        """Takes down what there is."""
        during = Latencies()
        during.add_counts(self._fleet.latencies.counts() - self._latencies)
        self.p50_ms, self.p99_ms, most = during.quantiles_ms((0.5, 0.99, 1.0))
        node_ids = set(self._fleet.node_ids)
        accepted = sum(
            one.outcome is Outcome.ACCEPTED and one.node_id in node_ids
            for publisher, before in zip(self._scenario.scene.publishers, self._published, strict=True)
            for one in publisher.history[before:]
        )
        accepted += sum(
            one.is_accepted and one.node_id in node_ids
            for one in self._scenario.direct.history[self._direct :]
        )
        self._scenario.acts.append(
            Row(
                *(self._title, len(node_ids), accepted),
                *(self._fleet.report.acknowledged - self._acknowledged, 0, 0),
                self._fleet.report.repeated - self._repeated,
                *(self.p50_ms, self.p99_ms, most),
                note=self.note,
            )
        )

    def tell(self, note: str) -> None:
        """Adds to the row's last column, also after the act."""
        self.note = f"{self.note}; {note}" if self.note else note
        for number, row in enumerate(self._scenario.acts):
            if row.scenario == self._title:
                self._scenario.acts[number] = msgspec.structs.replace(row, note=self.note)


@asynccontextmanager
async def measured(scenario: Scenario, title: str) -> AsyncIterator[Act]:
    """A part of the scenario with a row of its own."""
    act = Act(scenario, title)
    yield act
    await asyncio.sleep(_REPORT_SECONDS)
    act.ends()

"""Invariants 8 to 10, at the end of every scenario; the checker of the chaos run has the others."""

import asyncio
from collections.abc import Collection
from pathlib import Path

from chaos.history import History
from demo.hub import Hub
from tests.lab.bad_input import BadInput
from tests.lab.direct import DirectPublisher, direct_breaches, is_direct
from tests.lab.told import Told, dispatcher_counters, untold


class Checks:
    """What they find, by what it is called in the failure."""

    def __init__(self, hub: Hub, host: str, data: Path, direct: DirectPublisher) -> None:
        self._hub = hub
        self._host = host
        self._data = data
        self._direct = direct
        self.breaches: dict[str, list[str]] = {}

    async def under_load(self, victim: str) -> None:
        """Invariant 10, while all goes on; `victim` is a node whose name a stranger uses."""
        bad_input = BadInput(self._hub, self._host, self._data / "certificates", victim)
        self.breaches["bad input"] = await bad_input.breaches()

    async def when_quiet(self, history: History, whole: Collection[str]) -> None:
        """Invariants 8 and 9, when all is taken down and the dispatcher lives; `whole` are the nodes that had
        one link all the time. Takes the NO-ACK messages out of the history, which is of stored ones."""
        counters = await asyncio.to_thread(
            dispatcher_counters, f"{self._host}:{self._hub.ports[0].dispatcher_metrics}"
        )
        told = await asyncio.to_thread(Told, self._data / "dispatcher.db")
        self.breaches["NO-ACK"] = direct_breaches(
            self._direct.history, history.steps, history.publishes, whole=whole, dropped=told.dropped
        )
        self.breaches["not told"] = untold(counters, told.events, history.publishes)
        history.steps = [step for step in history.steps if not is_direct(step.resource)]
        for objects in history.held.values():
            for resource in [resource for resource in objects if is_direct(resource)]:
                del objects[resource]

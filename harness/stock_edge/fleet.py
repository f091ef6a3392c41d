"""Stock edges of one process: two stores, one writer, a link each. Of the shape of `edge.agent.EdgeFleet`."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType

from edge.connected_nodes import ConnectedNodes
from edge.node import MessageIds
from edge.settings import EdgeSettings
from edge.store import Batch, Change, StoreFault
from edge.writer import Writer
from harness.stock_edge.node import StockNode
from harness.stock_edge.stores import StockStores

TICK_SECONDS = 0.25


class StockFleet:
    """An async context that runs them. `pace` makes every time of theirs so many times shorter."""

    def __init__(
        self,
        settings: EdgeSettings,
        node_ids: Iterable[str],
        *,
        pace: float = 1.0,
        edged: bool = False,
        on_acknowledged: Callable[[Sequence[Change]], None] = lambda _changes: None,
    ) -> None:
        self._pace = pace
        self._stores = StockStores(settings.database, sync=settings.sync, history=settings.history)
        self._writer = Writer(self._stores, self._durable, self._failed)
        self._dials = asyncio.Semaphore(settings.dials_at_once)
        self._group = asyncio.TaskGroup()
        self._connected = ConnectedNodes()
        ids = MessageIds()
        try:
            self.nodes = {
                node_id: StockNode(
                    node_id,
                    settings,
                    self._writer,
                    ids,
                    pace=pace,
                    edged=edged,
                    on_link=self._link_changed,
                    on_sent=on_acknowledged,
                )
                for node_id in node_ids
            }
        except BaseException:
            self._stores.close()
            raise
        self._tasks: list[asyncio.Task[None]] = []

    def __getitem__(self, node_id: str) -> StockNode:
        return self.nodes[node_id]

    def __iter__(self) -> Iterator[StockNode]:
        return iter(self.nodes.values())

    def __len__(self) -> int:
        return len(self.nodes)

    def hush(self, *, hushed: bool) -> None:
        """While hushed its nodes ask nothing by themselves. No real one can be told so."""
        for node in self:
            node.is_hushed = hushed

    @property
    def links(self) -> int:
        """How many nodes are connected, as far as they know."""
        return len(self._connected)

    def total(self, counter: str) -> int:
        """The sum of one of the nodes' Counters."""
        return sum(getattr(node.counters, counter) for node in self)

    async def connected(self, count: int | None = None) -> None:
        """Waits until so many nodes (all, if not said) are connected at once."""
        await self._connected.reached(len(self) if count is None else count)

    async def __aenter__(self) -> "StockFleet":
        await self._group.__aenter__()
        self._group.create_task(self._writer.run(), name="stock edge writer")
        self._ticking = self._group.create_task(self._tick(), name="stock edge tick")
        self._tasks = [
            self._group.create_task(node.run(self._dials), name=f"stock edge {node.node_id}") for node in self
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for node in self:
                node.stop()
            self._ticking.cancel()
            if kind is None and self._tasks:
                await asyncio.wait(self._tasks)
            else:
                for task in self._tasks:
                    task.cancel()
            self._writer.stop()
            await self._group.__aexit__(kind, error, traceback)
        finally:
            self._stores.close()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_SECONDS / self._pace)
            now = loop.time()
            for node in self:
                node.tick(now)

    def _link_changed(self, node: StockNode, opened: bool) -> None:
        self._connected.changed(node.node_id, opened=opened)

    def _durable(self, batch: Batch) -> None:
        for change in batch.changes:
            self.nodes[change.node_id].stored(change, durable=True)

    def _failed(self, batch: Batch, fault: StoreFault) -> None:
        for change in batch.changes:
            self.nodes[change.node_id].stored(change, durable=False)

"""All edge nodes of one process: one store, one writer, one clock, a link each."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType

import structlog

from edge.connected_nodes import ConnectedNodes
from edge.content import ContentRefused
from edge.node import Counters, EdgeAgent, MessageIds
from edge.outbox import SetAside
from edge.protocol import acknowledgement, is_sampled
from edge.settings import EdgeSettings
from edge.store import Batch, Change, EdgeStore, StoreFault
from edge.tracing import EdgeTracing
from edge.transport import EdgeLink
from edge.writer import Commits, Writer

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

__all__ = ["ContentRefused", "Counters", "EdgeAgent", "EdgeFleet"]


class EdgeFleet:
    """Edge nodes that share a process and a database; an async context that runs them.

    `on_acknowledged` is called with each group of messages right after their acknowledgements were
    written to the sockets, `on_set_aside` with each upload that was durable and that the hub does not take
    (`store.read_set_aside` shows what is kept of them), `on_certificate_refused` with a node whose
    certificate the hub does not take. Raises StoreFault or SettingsFault if it cannot be set up. `store` may
    stand in for the database in tests of the order "stored before acknowledged".
    """

    def __init__(
        self,
        settings: EdgeSettings,
        node_ids: Iterable[str],
        *,
        tracing: EdgeTracing | None = None,
        on_acknowledged: Callable[[Sequence[Change]], None] | None = None,
        on_set_aside: Callable[[SetAside], None] = lambda _refused: None,
        on_certificate_refused: Callable[[str], None] = lambda _node_id: None,
        store: Commits | None = None,
    ) -> None:
        self.settings = settings
        self._tracing = tracing or EdgeTracing()
        self._on_acknowledged = on_acknowledged
        self._database = EdgeStore(settings.database, sync=settings.sync, history=settings.history)
        self._writer = Writer(store or self._database, self._durable, self._failed)
        self._ids = MessageIds()
        self._store_failing = False
        self._dials = asyncio.Semaphore(settings.dials_at_once)
        self._group = asyncio.TaskGroup()
        self._agent_tasks: list[asyncio.Task[None]] = []
        self._connected = ConnectedNodes()
        numbers = self._database.last_upload_numbers()
        try:
            self.agents = {
                node_id: EdgeAgent(
                    node_id,
                    settings,
                    self._writer,
                    self._ids,
                    last_number=numbers.get(node_id, 0),
                    on_link=self._link_changed,
                    on_set_aside=on_set_aside,
                    on_certificate_refused=on_certificate_refused,
                )
                for node_id in node_ids
            }
        except BaseException:
            self._database.close()
            raise
        for upload in self._database.waiting_uploads():
            if upload.node_id in self.agents:
                self.agents[upload.node_id].restore_upload(upload)

    def __getitem__(self, node_id: str) -> EdgeAgent:
        return self.agents[node_id]

    def __iter__(self) -> Iterator[EdgeAgent]:
        return iter(self.agents.values())

    def __len__(self) -> int:
        return len(self.agents)

    @property
    def links(self) -> int:
        """How many nodes are connected now."""
        return len(self._connected)

    @property
    def commits(self) -> int:
        """Transactions since the start."""
        return self._writer.commits

    def total(self, counter: str) -> int:
        """The sum of one of the nodes' Counters, for example "acknowledged"."""
        return sum(getattr(agent.counters, counter) for agent in self.agents.values())

    async def connected(self, count: int | None = None) -> None:
        """Waits until so many nodes (all, if not said) are connected at once."""
        await self._connected.reached(len(self.agents) if count is None else count)

    async def __aenter__(self) -> "EdgeFleet":
        await self._group.__aenter__()
        self._writer_task = self._group.create_task(self._writer.run(), name="edge writer")
        self._tick_task = self._group.create_task(self._tick(), name="edge tick")
        self._agent_tasks = [
            self._group.create_task(agent.run(self._dials), name=f"edge node {agent.node_id}")
            for agent in self.agents.values()
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for agent in self.agents.values():
                agent.stop()
            self._tick_task.cancel()
            if kind is None and self._agent_tasks:
                await asyncio.wait(self._agent_tasks)
            else:
                for task in self._agent_tasks:
                    task.cancel()
            self._writer.stop()
            await self._group.__aexit__(kind, error, traceback)
        finally:
            self._database.close()
            self._tracing.close()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        shortest = min(self.settings.keepalive_seconds, self.settings.silence_seconds, 4.0)
        while True:
            await asyncio.sleep(shortest / 4)
            now = loop.time()
            for agent in self.agents.values():
                agent.tick(now)

    def _link_changed(self, agent: EdgeAgent, opened: bool) -> None:
        self._connected.changed(agent.node_id, opened=opened)

    def _durable(self, batch: Batch) -> None:
        self._store_failing = False
        now_ms = time.time_ns() // 1_000_000
        next_id = self._ids.next
        answers: dict[EdgeLink, list[bytes]] = {}
        for change in batch.changes:
            node_id, message, _, at_ms, link = change
            self.agents[node_id].stored(change, durable=True)
            traceparent = message.header.traceparent
            if traceparent:
                sampled = is_sampled(traceparent)
                traceparent = self._tracing.apply(node_id, message, at_ms) if sampled else ""
            frames = answers.get(link)
            if frames is None:
                frames = answers[link] = []
            frames.append(acknowledgement(message, next_id(), now_ms, traceparent))
        for link, frames in answers.items():
            link.send(frames)
        for upload in batch.uploads:
            self.agents[upload.node_id].upload_stored(upload, None)
        if self._on_acknowledged is not None and batch.changes:
            self._on_acknowledged(batch.changes)

    def _failed(self, batch: Batch, fault: StoreFault) -> None:
        if not self._store_failing:
            log.error("store.failed", detail=str(fault), messages=len(batch.changes))
        self._store_failing = True
        for change in batch.changes:
            self.agents[change.node_id].stored(change, durable=False)
        for upload in batch.uploads:
            self.agents[upload.node_id].upload_stored(upload, fault)

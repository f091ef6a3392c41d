"""What is told after a commit: changes to watchers, and to dispatchers that directives wait for them."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from cloudhub.v1.resources_pb2 import SessionsResources
from services.runtime.errors import Refused, Unavailable
from services.sessions.lifecycle import Session
from services.sessions.metrics import Metrics
from services.sessions.records import Changed, Committed, T


class Watch:
    """The changes that one watcher has not taken; bounded, an overflow ends it."""

    def __init__(self, node_id_prefix: str, most: int) -> None:
        self._prefix = node_id_prefix
        self._most = most
        self._changes: deque[Session] = deque()
        self._wake = asyncio.Event()
        self._end: Unavailable | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._changes)

    def put(self, session: Session) -> bool:
        """Queues a change that the watcher asked for; False if that ends the watch."""
        if not session.node_id.startswith(self._prefix):
            return True
        if len(self._changes) >= self._most:
            self._changes.clear()
            self.end(
                Unavailable(
                    "WATCH_OVERFLOW",
                    f"the watcher fell {self._most} changes behind and missed some; watch again "
                    "with include_present",
                )
            )
            return False
        self._changes.append(session)
        self._wake.set()
        return True

    def end(self, error: Unavailable) -> None:
        """The watcher gets this once it has taken what waits."""
        self._end = error
        self._wake.set()

    async def take(self) -> list[Session]:
        """All waiting changes, at least one; raises what ended the watch."""
        while not self._changes:
            if self._end:
                raise self._end
            self._wake.clear()
            await self._wake.wait()
        taken = list(self._changes)
        self._changes.clear()
        return taken


class Notices:
    """Watchers and listening dispatchers of this process."""

    def __init__(self, metrics: Metrics, most_watchers: int, watch_queue: int) -> None:
        self._metrics = metrics
        self._most_watchers = most_watchers
        self._watch_queue = watch_queue
        self._watches: set[Watch] = set()
        self._bells: dict[str, set[asyncio.Event]] = {}
        # Numbers of this process's own transactions that were told, for as long as they may still be read.
        self._told: set[int] = set()
        # The last number told of a node: since the last look at other replicas' changes, and before it.
        self._newest: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self.stopping = False

    @property
    def watched(self) -> bool:
        """Whether anybody watches."""
        return bool(self._watches)

    def count(self, held: SessionsResources) -> None:
        """Adds what is kept here for others."""
        held.watchers += len(self._watches)
        held.watched_changes += sum(map(len, self._watches))
        held.listeners += sum(map(len, self._bells.values()))

    def tell(self, committed: Committed[T]) -> None:
        """Tells what a transaction of this process changed."""
        self._metrics.changed(committed.changes)
        if committed.dropped_events:
            self._metrics.dropped_of_nodes(committed.dropped_events)
        if committed.changes and self._watches:
            self._told.add(committed.number)
            self._put([session for session in committed.changes if self._is_news(session, committed.number)])
            self._note((session.node_id, committed.number) for session in committed.changes)
        for dispatcher_id in committed.directed:
            self.ring(dispatcher_id)

    def tell_changed(self, found: Iterable[Changed]) -> None:
        """Tells what was read from the registry, but for what this process has told itself."""
        others = [changed for changed in found if changed.number not in self._told]
        self._put([item.session for item in others if self._is_news(item.session, item.number)])
        self._note((item.session.node_id, item.number) for item in others)

    def forget_told(self, reached: int) -> None:
        """Changes below this number will not be read again."""
        self._told = {number for number in self._told if number >= reached}
        self._newest = ({}, self._newest[0])

    def _is_news(self, session: Session, number: int) -> bool:
        """Whether this comes after all that was told of the node. Transactions that ran at the same time may
        end here in another order than they were committed in, and may be read before they end here."""
        return all(newest.get(session.node_id, -1) < number for newest in self._newest)

    def _note(self, told: Iterable[tuple[str, int]]) -> None:
        newest = self._newest[0]
        for node_id, number in told:
            newest[node_id] = max(number, newest.get(node_id, -1))

    def _put(self, changes: Sequence[Session]) -> None:
        for watch in list(self._watches):
            if not all(watch.put(session) for session in changes):
                self._watches.discard(watch)
                self._metrics.watch_ended("overflow")

    @contextmanager
    def watch(self, node_id_prefix: str) -> Iterator[Watch]:
        """A watch on the changes from now on. Raises Refused at the bound."""
        self._check_open()
        if len(self._watches) >= self._most_watchers:
            raise Refused("TOO_MANY_WATCHERS", f"{self._most_watchers} watchers are the most at a time")
        watch = Watch(node_id_prefix, self._watch_queue)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    @contextmanager
    def listen(self, dispatcher_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when there may be something new for the dispatcher, or `stopping`."""
        self._check_open()
        bell = asyncio.Event()
        self._bells.setdefault(dispatcher_id, set()).add(bell)
        try:
            yield bell
        finally:
            bells = self._bells[dispatcher_id]
            bells.discard(bell)
            if not bells:
                del self._bells[dispatcher_id]

    def ring(self, dispatcher_id: str) -> None:
        """There may be directives for this dispatcher."""
        for bell in self._bells.get(dispatcher_id, ()):
            bell.set()

    def ring_all(self) -> None:
        """There may be directives that another replica wrote."""
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    def close(self) -> None:
        """Ends every stream, and refuses new ones."""
        self.stopping = True
        for watch in self._watches:
            watch.end(self.gone())
            self._metrics.watch_ended("stopping")
        self.ring_all()

    @staticmethod
    def gone() -> Unavailable:
        """What streams end with when the process stops."""
        return Unavailable("STOPPING", "the service is shutting down")

    def _check_open(self) -> None:
        if self.stopping:
            raise self.gone()

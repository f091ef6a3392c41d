"""What watchers see of other replicas: `services.sessions.followed_changes`, over the contract's fake."""

import pytest

from services.runtime.errors import StoreUnavailable
from services.sessions.followed_changes import MOST_PER_LOOK, FollowedChanges
from services.sessions.lifecycle import State
from services.sessions.metrics import Metrics
from services.sessions.notices import Notices, Watch
from services.sessions.records import Changed, Ref
from tests.support.sessions import FakeRegistry, opening

NOW = 1_700_000_000_000


class Replicated:
    """One registry, this process's notices, and changes that are or are not this process's."""

    def __init__(self) -> None:
        self.registry = FakeRegistry()
        self.notices = Notices(Metrics(), 4, 10 * MOST_PER_LOOK)
        self.changes = FollowedChanges(self.registry, self.notices)

    async def elsewhere(self, *node_ids: str) -> None:
        """Another replica opens sessions."""
        await self.registry.open("d1", [opening(node_id) for node_id in node_ids], NOW)

    async def here(self, *node_ids: str) -> None:
        """This replica opens sessions."""
        self.notices.tell(await self.registry.open("d1", [opening(node_id) for node_id in node_ids], NOW))


async def seen(watch: Watch) -> list[tuple[str, State]]:
    return [(session.node_id, session.state) for session in await watch.take()]


async def test_changes_of_other_replicas_are_told_once() -> None:
    made = Replicated()
    await made.elsewhere("edge-0")
    await made.changes.look()
    with made.notices.watch("edge") as watch:
        await made.elsewhere("edge-1", "other-1")
        await made.here("edge-2")
        for _ in range(3):
            await made.changes.look()
        await made.elsewhere("edge-3")
        await made.changes.look()
        assert await seen(watch) == [(f"edge-{number}", State.OPENING) for number in (2, 1, 3)]


async def test_a_session_that_changes_again_is_told_again() -> None:
    made = Replicated()
    await made.changes.look()
    with made.notices.watch("") as watch:
        await made.here("edge-1")
        session = made.registry.sessions["edge-1"]
        await made.registry.activate("d1", [Ref("edge-1", session.epoch)], NOW)
        await made.changes.look()
        assert await seen(watch) == [("edge-1", State.OPENING), ("edge-1", State.ACTIVE)]


async def test_more_changes_than_are_read_at_once_are_all_told() -> None:
    made = Replicated()
    await made.changes.look()
    names = [f"edge-{number:04}" for number in range(2 * MOST_PER_LOOK + 1)]
    with made.notices.watch("") as watch:
        await made.elsewhere(*names)
        await made.elsewhere("edge-last")
        await made.changes.look()
        assert [name for name, _ in await seen(watch)] == [*names, "edge-last"]


class Flaky(FakeRegistry):
    """A registry whose database goes away between two pages."""

    pages_left = 1000

    async def changes_after(self, number: int, node_id: str, most: int) -> list[Changed]:
        self.pages_left -= 1
        if self.pages_left < 0:
            raise StoreUnavailable("the database refused: away")
        return await super().changes_after(number, node_id, most)


async def test_a_database_that_was_away_delays_what_is_told_and_loses_nothing() -> None:
    made = Replicated()
    made.registry = registry = Flaky()
    made.changes = FollowedChanges(registry, made.notices)
    await made.changes.look()
    names = [f"edge-{number:04}" for number in range(MOST_PER_LOOK + 5)]
    with made.notices.watch("") as watch:
        await made.elsewhere(*names)
        registry.pages_left = 1
        with pytest.raises(StoreUnavailable):
            await made.changes.look()
        registry.pages_left = 1000
        await made.changes.look()
        assert [name for name, _ in await seen(watch)] == names


async def test_while_nobody_watches_no_session_is_read() -> None:
    made = Replicated()
    made.registry = registry = Flaky()
    made.changes = FollowedChanges(registry, made.notices)
    registry.pages_left = 0
    for number in range(3):
        await made.elsewhere(f"edge-{number}")
        await made.changes.look()
    registry.pages_left = 1000
    with made.notices.watch("") as watch:
        await made.elsewhere("edge-9")
        await made.changes.look()
        assert await seen(watch) == [("edge-9", State.OPENING)]

"""What goes and when, by which clock: `services.dispatcher.retention`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from services.dispatcher.outbox.quotas import Quotas
from services.dispatcher.outbox.records import Claim, Event, EventKind
from services.dispatcher.outbox.retention import NODES_PER_STEP
from services.dispatcher.outbox.schema import SCHEMA, delivery_event
from services.dispatcher.outbox.sql import SqlOutbox
from services.dispatcher.retention import UNKNOWN_NODES_PER_STEP, Retention
from services.runtime.store import open_store
from tests.support.dispatcher import Metrics, SteppedClock
from tests.support.outbox import NODE, accept, publication

DAY = 86_400.0


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[SqlOutbox]:
    store = await open_store(f"sqlite:///{tmp_path / 'outbox.db'}", SCHEMA)
    outbox = SqlOutbox(store, Quotas())
    await outbox.open()
    yield outbox
    await store.close()


async def messages_of(outbox: SqlOutbox, node_id: str) -> list[str]:
    """The ids that a node's lines of history have, oldest first."""
    ids = select(delivery_event.c.message_id).order_by(delivery_event.c.event_id)
    of_node = ids.where(delivery_event.c.node_id == node_id)
    return await outbox.store.read(lambda connection: list(connection.execute(of_node).scalars()))


class Case:
    """A dispatcher's retention of a week, on a clock that the test sets; `restart` is one of the process."""

    def __init__(self, outbox: SqlOutbox) -> None:
        self.outbox = outbox
        self.clock = SteppedClock()
        self.metrics = Metrics()
        self.retention = self.made()

    def made(self) -> Retention:
        return Retention(self.outbox, self.clock, self.metrics, 7 * DAY, 7 * DAY)

    async def note(self, name: str) -> None:
        await self.outbox.commit([Event(NODE, EventKind.REJECTED, self.clock.wall_ms(), name, reason=name)])

    async def left(self) -> list[str]:
        await self.retention.sweep()
        return await messages_of(self.outbox, NODE)


@pytest.fixture
async def case(outbox: SqlOutbox) -> Case:
    case = Case(outbox)
    await outbox.commit([Claim(NODE, 1, case.clock.wall_ms())])
    await case.note("first")
    assert await case.left() == ["first"]
    return case


async def test_a_step_forward_of_the_clock_sweeps_no_history(case: Case) -> None:
    """It is deleted when it was kept for a week, as seen here; what came after the step a week after it."""
    case.clock.now_ms += int(30 * DAY * 1000)
    await case.note("stepped")
    assert await case.left() == ["first", "stepped"]
    assert case.metrics.value("clock_steps_total") == 1
    case.clock.advance(6.9 * DAY)
    assert await case.left() == ["first", "stepped"]
    case.clock.advance(0.05 * DAY)
    await case.note("later")
    case.clock.advance(0.06 * DAY)
    assert await case.left() == ["later"]


async def test_a_restart_after_a_long_absence_sweeps_nothing_at_once(case: Case) -> None:
    """The former process kept how far time was seen to pass; it is no alarm."""
    case.clock.now_ms += int(30 * DAY * 1000)
    case.retention = case.made()
    assert await case.left() == ["first"]
    assert case.metrics.value("clock_steps_total") == 0
    case.clock.advance(7.1 * DAY)
    assert await case.left() == []


async def test_time_that_passes_sweeps(case: Case) -> None:
    case.clock.advance(6.9 * DAY)
    assert await case.left() == ["first"]
    case.clock.advance(0.2 * DAY)
    assert await case.left() == []


async def test_nodes_that_never_connected_are_forgotten_when_nothing_waits_for_them(case: Case) -> None:
    """C50: an hour after; how many there are is measured."""
    await case.outbox.commit([accept(publication(1), "ghost", case.clock.wall_ms())])
    case.retention.measure()
    assert case.metrics.value("unknown_nodes") == 1
    await case.outbox.purge("ghost", "", case.clock.wall_ms())
    await case.retention.sweep()
    assert await case.outbox.summary("ghost") is not None
    case.clock.advance(3601)
    await case.retention.sweep()
    assert await case.outbox.summary("ghost") is None
    case.retention.measure()
    assert case.metrics.value("unknown_nodes") == 0


async def test_of_many_nodes_a_transaction_forgets_a_few(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their histories go with them, and others wait meanwhile. A sweep leaves the rest to the next."""
    monkeypatch.setattr("services.dispatcher.retention.UNKNOWN_STEPS", 2)
    ghosts = [f"ghost-{number:03}" for number in range(2 * UNKNOWN_NODES_PER_STEP + 5)]
    await case.outbox.commit([accept(publication(1), one, case.clock.wall_ms()) for one in ghosts])
    for one in ghosts:
        await case.outbox.purge(one, "", case.clock.wall_ms())
    await case.retention.sweep()
    case.clock.advance(3601)
    left = []
    for _ in range(2):
        await case.retention.sweep()
        case.retention.measure()
        left.append(case.metrics.value("unknown_nodes"))
    assert left == [5, 0]


async def test_what_is_in_no_history_is_counted(case: Case) -> None:
    """C46, C50."""
    for _ in range(12):
        await case.outbox.commit(
            [
                Event("mistyped", EventKind.REJECTED, case.clock.wall_ms(), "m", reason="X"),
                Event(NODE, EventKind.DROPPED, case.clock.wall_ms(), "m", reason="no_session"),
            ]
        )
    case.retention.measure()
    case.retention.measure()
    assert case.metrics.value("history_left_out_total", reason="unknown_node") == 12
    assert case.metrics.value("history_left_out_total", reason="repeated") == 3


async def test_a_sweep_does_so_many_steps_and_the_next_one_goes_on(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of which there are many have their turn in a later sweep, and nobody's lines stay."""
    monkeypatch.setattr("services.dispatcher.retention.SWEEP_STEPS", 1)
    nodes = [f"n{number:04}" for number in range(2 * NODES_PER_STEP)]
    at_ms = case.clock.wall_ms()
    await case.outbox.commit([Claim(node_id, 1, at_ms) for node_id in nodes])
    await case.outbox.commit(
        [Event(node_id, EventKind.REJECTED, at_ms, "old", reason="x") for node_id in nodes]
    )

    async def has_lines(node_id: str) -> bool:
        return bool(await messages_of(case.outbox, node_id))

    for _ in range(8):  # time that is seen to pass
        case.clock.advance(DAY)
        await case.retention._look()
    await case.retention.sweep()
    assert [await has_lines(one) for one in (NODE, nodes[0], nodes[-1])] == [False, False, True]
    for _ in range(4):
        await case.retention.sweep()
    assert not [one for one in [NODE, *nodes] if await has_lines(one)]

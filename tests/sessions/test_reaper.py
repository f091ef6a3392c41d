"""What nobody reports: `services.sessions.reaper`, over the fake registry and a clock moved by hand."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from services.runtime.errors import StoreUnavailable
from services.sessions.lifecycle import EventKind, Reason, State
from services.sessions.metrics import Metrics
from services.sessions.notices import Notices
from services.sessions.reaper import DELETED_SHOWN_SECONDS, Reaper
from services.sessions.records import Ending, Ref, Replica
from tests.support.sessions import FakeRegistry, SteppedClock, opening, renewal

LEASE = 15.0
STEP = 1.5


@dataclass
class FailingRegistry(FakeRegistry):
    """A fake whose database can be away."""

    fault: Callable[[], None] | None = None

    async def probe(self) -> None:
        if self.fault:
            self.fault()

    def away(self) -> None:
        """The database does not answer from here on."""

        def fail() -> None:
            raise StoreUnavailable("disk on fire")

        self.fault = fail


@dataclass
class World:
    """A reaper and what it looks after."""

    registry: FailingRegistry = field(default_factory=FailingRegistry)
    clock: SteppedClock = field(default_factory=SteppedClock)
    metrics: Metrics = field(default_factory=Metrics)
    health: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.notices = Notices(self.metrics, 4, 100)
        self.reaper = self.new_reaper()
        self.counter = 0

    def new_reaper(self) -> Reaper:
        def on_health(healthy: bool) -> None:
            self.health.append(healthy)

        return Reaper(
            self.registry,
            self.notices,
            self.metrics,
            self.clock,
            lambda: Replica("s1", "one", "127.0.0.1:1"),
            lease_seconds=LEASE,
            event_retention_seconds=3600.0,
            most_events=1000,
            on_health=on_health,
        )

    async def active(self, node_id: str = "edge-1", dispatcher_id: str = "d1") -> Ref:
        now_ms = self.clock.wall_ms()
        committed = await self.registry.open(dispatcher_id, [opening(node_id)], now_ms)
        ref = Ref(node_id, committed.results[0].epoch)
        await self.registry.activate(dispatcher_id, [ref], now_ms)
        return ref

    async def goes_by(self, seconds: float, *, renewing: str = "") -> None:
        """Rounds, every STEP, with a dispatcher that renews between them."""
        for _ in range(round(seconds / STEP)):
            self.clock.advance(STEP)
            if renewing:
                self.counter += 1
                await self.registry.renew(renewal(renewing, self.counter), self.clock.wall_ms(), 10)
            await self.reaper.check()

    def state(self, node_id: str = "edge-1") -> State:
        return self.registry.sessions[node_id].state

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"cloudhub_sessions_{name}", labels) or 0.0


async def test_a_dispatcher_that_renews_keeps_its_sessions() -> None:
    world = World()
    await world.active()
    await world.goes_by(10 * LEASE, renewing="d1")
    assert world.state() is State.ACTIVE


async def test_a_silent_dispatchers_session_is_orphaned_and_then_closed() -> None:
    """Also of one that never renewed. Its slot is held for two leases."""
    world = World()
    await world.active()
    await world.reaper.check()
    await world.goes_by(LEASE - STEP)
    assert world.state() is State.ACTIVE
    await world.goes_by(STEP)
    assert world.state() is State.ORPHANED
    await world.goes_by(2 * LEASE - STEP)
    assert world.state() is State.ORPHANED
    await world.goes_by(STEP)
    assert world.state() is State.CLOSED
    assert world.registry.sessions["edge-1"].reason is Reason.DISPATCHER_LOST
    assert world.metric("reaped_total", what="lost") == 1
    assert world.metric("reaped_total", what="expired") == 1
    assert world.metric("closes_total", reason="dispatcher_lost") == 1


async def test_a_wall_clock_that_steps_ends_nobodys_session() -> None:
    """C36: by an hour, forward and back."""
    world = World()
    await world.active()
    await world.reaper.check()
    for step_ms in (3_600_000, -7_200_000):
        world.clock.now_ms += step_ms
        await world.goes_by(2 * LEASE, renewing="d1")
        assert world.state() is State.ACTIVE


async def test_a_service_that_was_away_for_an_hour_ends_nobodys_session() -> None:
    """C36: as a new process, and as one that was stopped meanwhile."""
    world = World()
    await world.active()
    await world.goes_by(LEASE - STEP)
    world.clock.advance(3600.0)
    await world.goes_by(LEASE - STEP)
    assert world.state() is State.ACTIVE
    world.clock.advance(3600.0)
    world.reaper = world.new_reaper()
    await world.goes_by(LEASE)
    assert world.state() is State.ACTIVE


async def test_a_database_that_was_away_ends_nobodys_session() -> None:
    """C36: nobody could renew meanwhile."""
    world = World()
    await world.active()
    await world.goes_by(LEASE - STEP)
    world.registry.away()
    await world.goes_by(LEASE)
    world.registry.fault = None
    await world.goes_by(LEASE)
    assert world.state() is State.ACTIVE
    assert world.health == [True, False, True]


async def test_health_follows_the_database() -> None:
    world = World()
    world.registry.away()
    await world.reaper.check()
    await world.reaper.check()
    assert world.health == [False]
    assert world.metric("store_available") == 0
    world.registry.fault = None
    await world.reaper.check()
    assert world.health == [False, True]
    assert world.metric("store_available") == 1


async def test_a_database_that_hangs_is_unhealthy() -> None:
    world = World()

    def hang() -> None:
        raise TimeoutError

    world.registry.fault = hang
    await world.reaper.check()
    assert world.health == [False]


async def test_an_eviction_that_nobody_confirms_is_carried_out_after_a_lease() -> None:
    world = World()
    ref = await world.active()
    await world.registry.evict("edge-1", ref.epoch, world.clock.wall_ms())
    await world.goes_by(LEASE, renewing="d1")
    assert world.state() is State.DRAINING
    await world.goes_by(STEP, renewing="d1")
    assert world.state() is State.CLOSED
    assert world.registry.sessions["edge-1"].reason is Reason.EVICTED
    assert world.metric("reaped_total", what="unconfirmed") == 1


async def test_watchers_see_what_the_reaper_does() -> None:
    world = World()
    await world.active()
    with world.notices.watch("") as watch:
        await world.goes_by(4 * LEASE)
        assert [session.state for session in await watch.take()] == [State.ORPHANED, State.CLOSED]


async def test_thousands_of_orphans_are_closed_in_parts() -> None:
    world = World()
    await world.registry.open("d1", [opening(f"edge-{i}") for i in range(2500)], world.clock.wall_ms())
    await world.goes_by(4 * LEASE)
    assert world.metric("reaped_total", what="expired") == 2500
    assert await world.registry.states() == {State.CLOSED: 2500}


async def test_a_gone_dispatchers_lease_is_forgotten() -> None:
    world = World()
    await world.active()
    await world.goes_by(4 * LEASE)
    assert list(world.registry.fake_leases) == ["d1"]
    await world.registry.renew(renewal("d2"), world.clock.wall_ms(), 10)
    await world.registry.acknowledge(list(world.registry.events))
    await world.reaper.check()
    assert list(world.registry.fake_leases) == ["d2"]


async def test_old_events_are_dropped_and_counted() -> None:
    world = World()
    await world.active()
    world.clock.advance(3601.0)
    await world.goes_by(STEP)
    assert world.registry.events == {}
    assert world.metric("dropped_rows_total", what="events") == 1


async def test_present_figures_are_shown() -> None:
    world = World()
    await world.active()
    await world.reaper.check()
    assert world.metric("live", state="active") == 1
    assert world.metric("live", state="opening") == 0
    assert world.metric("limit", scope="connector") == 10_000


async def test_it_goes_round_until_it_is_cancelled() -> None:
    world = World()
    rounds = asyncio.Semaphore(0)

    world.registry.fault = rounds.release
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(world.reaper.run())
        async with asyncio.timeout(10):
            await rounds.acquire()
            await rounds.acquire()
        task.cancel()
    assert world.health == [True]


async def test_a_fault_of_ours_ends_the_loop() -> None:
    """A dead loop stops the process, it is not passed over."""
    world = World()

    def fault() -> None:
        raise RuntimeError("a bug")

    world.registry.fault = fault
    with pytest.raises(RuntimeError, match="a bug"):
        await world.reaper.run()


async def test_a_deleted_nodes_session_goes_when_every_watcher_has_had_time_to_see_its_end() -> None:
    """C10: no row is left; a node that came again meanwhile stays."""
    world = World()
    for node_id in ("edge-1", "edge-2"):
        ref = await world.active(node_id)
        await world.registry.delete_nodes([node_id], world.clock.wall_ms())
        await world.registry.close("d1", [Ending(node_id, ref.epoch, Reason.NODE_DELETED)], 0)
    await world.reaper.check()
    assert set(world.registry.sessions) == {"edge-1", "edge-2"}
    await world.active("edge-2")
    await world.goes_by(DELETED_SHOWN_SECONDS + STEP, renewing="d1")
    assert set(world.registry.sessions) == {"edge-2"}
    assert world.state("edge-2") is State.ACTIVE


async def test_a_replica_says_that_it_lives_and_takes_its_leave() -> None:
    world = World()
    await world.goes_by(LEASE)
    (replica,) = await world.registry.replicas()
    assert (replica.replica_id, replica.name, replica.address) == ("s1", "one", "127.0.0.1:1")
    assert replica.beats > 2
    await world.reaper.leave()
    assert await world.registry.replicas() == []


async def test_a_silent_replica_is_shown_with_its_silence_and_dropped_after_three_leases() -> None:
    """C36: counted from what this replica saw itself; a pause of its own begins every silence anew."""
    world = World()
    await world.registry.beat(Replica("s2", "two", "127.0.0.1:2"))

    async def silence() -> float | None:
        found = {one.instance_id: one.silent_seconds for one in await world.reaper.instances()}
        return found.get("s2")

    await world.reaper.check()
    await world.goes_by(2 * LEASE)
    assert await silence() == 2 * LEASE
    world.clock.advance(100 * LEASE)
    await world.reaper.check()
    assert await silence() == 0
    await world.goes_by(3 * LEASE - STEP)
    assert await silence() == 3 * LEASE - STEP
    await world.goes_by(STEP)
    assert await silence() is None


async def test_two_reapers_of_one_registry_count_a_loss_once() -> None:
    """C35: both see the silence; sessions are orphaned, closed and told once."""
    world = World()
    await world.active()
    other = world.new_reaper()
    for _ in range(round(4 * LEASE / STEP)):
        world.clock.advance(STEP)
        await asyncio.gather(world.reaper.check(), other.check())
    assert world.state() is State.CLOSED
    for what in ("lost", "expired"):
        assert world.metric("reaped_total", what=what) == 1
    events = [event.kind for event in world.registry.events.values()]
    assert events == [EventKind.CONNECTED, EventKind.DISCONNECTED]


async def test_a_step_forward_of_the_clock_gives_no_events_up() -> None:
    """They go when they were kept for their time, as seen here; those after the step a while after it."""
    world = World()
    await world.reaper.check()
    await world.active()
    world.clock.now_ms += 86_400_000
    await world.active("edge-2", "d2")

    def waiting() -> set[str]:
        return {event.node_id for event in world.registry.events.values()}

    await world.goes_by(100, renewing="d1")
    assert waiting() == {"edge-1", "edge-2"}
    world.clock.advance(3400)
    await world.goes_by(70, renewing="d1")
    assert waiting() == {"edge-1", "edge-2"}
    world.clock.advance(300)
    await world.goes_by(150, renewing="d1")
    assert waiting() == set()
    assert world.metric("dropped_rows_total", what="events") >= 2

"""Several replicas of the service over one PostgreSQL database."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cloudhub.v1 import link_pb2
from cloudhub.v1 import sessions_pb2 as pb
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub, SessionsServiceStub
from services.runtime.store import open_store
from services.runtime.watched_store import WatchedStore
from services.sessions import records, schema
from services.sessions.app import SessionsApp
from services.sessions.leases import Observation
from services.sessions.lifecycle import Reason, State
from services.sessions.limits import Limits
from services.sessions.records import Ending, Filter, Ref
from services.sessions.registry_sql import SqlRegistry
from tests.sessions.test_admin import read
from tests.sessions.test_servicer import active, an_open, close_request, open_request
from tests.support.postgres import Databases
from tests.support.processes import eventually
from tests.support.sessions import opening, recounted, renewal, running_sessions

if TYPE_CHECKING:
    from cloudhub.v1.sessions_pb2_grpc import SessionsAdminAsyncStub, SessionsServiceAsyncStub

LIMIT = 4
SHORT_LEASE = pytest.mark.parametrize("replicas", [2.0], indirect=True)
NOW = 1_700_000_000_000


class Replica:
    """One of the two, and stubs for it."""

    def __init__(self, app: SessionsApp, channel: grpc.aio.Channel) -> None:
        self.app = app
        self.service: SessionsServiceAsyncStub = SessionsServiceStub(channel)
        self.admin: SessionsAdminAsyncStub = SessionsAdminStub(channel)


@pytest.fixture
async def url(databases: Databases) -> str:
    return await databases.fresh(schema.SCHEMA)


OpenedStore = Callable[[], Awaitable[WatchedStore]]


@pytest.fixture
async def opened_store(url: str) -> AsyncIterator[OpenedStore]:
    """Opens the database once more, as another process would."""
    stores: list[WatchedStore] = []

    async def open_it() -> WatchedStore:
        stores.append(await open_store(url, schema.SCHEMA))
        return stores[-1]

    yield open_it
    for store in stores:
        await store.close()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Returns when the answer is yes."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - other processes tell nobody
            await asyncio.sleep(0.1)


@pytest.fixture
async def replicas(
    request: pytest.FixtureRequest, url: str, tmp_path: Path
) -> AsyncIterator[tuple[Replica, Replica]]:
    """With a lease that ends only in the tests that wait for it."""
    lease_seconds = getattr(request, "param", 60.0)
    changes: dict[str, Any] = {
        "database": url,
        "limit_per_connector": LIMIT,
        "lease_seconds": lease_seconds,
    }
    async with (
        running_sessions(tmp_path, name="sessions-0", **changes) as (first, first_channel),
        running_sessions(tmp_path, name="sessions-1", **changes) as (second, second_channel),
    ):
        yield Replica(first, first_channel), Replica(second, second_channel)


async def test_an_eviction_reaches_the_dispatcher_through_whichever_replica_it_watches(
    replicas: tuple[Replica, Replica],
) -> None:
    """Asked at one, told at the other; a takeover and a deletion as well."""
    one, two = replicas
    for name in ("edge-1", "edge-2", "edge-3"):
        await active(one.service, name)
    stream: Any = two.service.WatchDirectives(pb.WatchDirectivesRequest(dispatcher_id="d1"))
    await one.admin.EvictSession(pb.EvictSessionRequest(node_id="edge-1"))
    await one.service.OpenSessions(open_request(an_open("edge-2"), dispatcher_id="d2"))
    await one.service.DeleteNodes(pb.DeleteNodesRequest(node_ids=["edge-3"]))
    told: dict[str, int] = {}
    async with asyncio.timeout(5):
        while len(told) < 3:
            told |= {end.node_id: end.reason for end in (await stream.read()).end}
    assert told == {
        "edge-1": link_pb2.CLOSE_REASON_EVICTED,
        "edge-2": link_pb2.CLOSE_REASON_SUPERSEDED,
        "edge-3": link_pb2.CLOSE_REASON_NODE_DELETED,
    }
    stream.cancel()


async def test_a_watcher_sees_what_is_done_through_another_replica(
    replicas: tuple[Replica, Replica],
) -> None:
    """Opens, ends and the end of a deleted node, before its row goes."""
    one, two = replicas
    stream = two.admin.WatchSessions(pb.WatchSessionsRequest(node_id_prefix="edge", include_present=True))
    await active(two.service, "edge-1")
    assert await read(stream) == ("edge-1", pb.SESSION_STATE_OPENING)
    assert await read(stream) == ("edge-1", pb.SESSION_STATE_ACTIVE)
    epoch, _ = await active(one.service, "edge-2")
    async with asyncio.timeout(5):
        while await read(stream) != ("edge-2", pb.SESSION_STATE_ACTIVE):
            pass
        await one.service.DeleteNodes(pb.DeleteNodesRequest(node_ids=["edge-2"]))
        while await read(stream) != ("edge-2", pb.SESSION_STATE_DRAINING):
            pass
        await one.service.CloseSessions(close_request("edge-2", epoch, link_pb2.CLOSE_REASON_NODE_DELETED))
        while await read(stream) != ("edge-2", pb.SESSION_STATE_CLOSED):
            pass
    stream.cancel()

    async def forgotten() -> bool:
        listed = await one.admin.ListSessions(pb.ListSessionsRequest(states=[pb.SESSION_STATE_CLOSED]))
        return not listed.sessions

    await until(forgotten)


@pytest.mark.no_cover
async def test_a_watcher_of_any_replica_ends_with_the_last_state_of_every_node(
    replicas: tuple[Replica, Replica],
) -> None:
    """Every row change is seen: many writers through both replicas, two watchers."""
    streams = [replica.admin.WatchSessions(pb.WatchSessionsRequest()) for replica in replicas]
    await eventually(lambda: all(replica.app.notices.watched for replica in replicas), 5)
    seen: list[dict[str, tuple[int, int]]] = [{}, {}]

    async def follow(index: int) -> None:
        async for response in streams[index]:
            session = response.session
            known = seen[index].get(session.node_id, (0, 0))
            assert session.epoch >= known[0], "an older session came after a newer one"
            seen[index][session.node_id] = session.epoch, session.state

    async def live(number: int) -> None:
        name, chooser = f"edge-{number}", random.Random(number)
        for life in range(6):
            here, there = chooser.sample(replicas, 2)
            opened = an_open(name, connector_id=f"c{number}")
            answer = await here.service.OpenSessions(open_request(opened, dispatcher_id=f"d{life % 2}"))
            ref = pb.SessionRef(node_id=name, epoch=answer.verdicts[0].epoch)
            await there.service.ActivateSessions(
                pb.ActivateSessionsRequest(dispatcher_id=f"d{life % 2}", sessions=[ref])
            )
            if chooser.random() < 0.5:
                request = close_request(name, ref.epoch, link_pb2.CLOSE_REASON_EDGE_CLOSED, f"d{life % 2}")
                await here.service.CloseSessions(request)

    followers = [asyncio.create_task(follow(index)) for index in range(2)]
    await asyncio.gather(*(live(number) for number in range(8)))

    async def are_up_to_date() -> bool:
        """Both have seen, of every node, what the registry says now."""
        everything = pb.ListSessionsRequest(states=pb.SessionState.values()[1:])
        listed = (await replicas[0].admin.ListSessions(everything)).sessions
        last = {session.node_id: (session.epoch, session.state) for session in listed}
        return len(last) == 8 and seen == [last, last]

    await until(are_up_to_date)
    for stream in streams:
        stream.cancel()
    for follower in followers:
        with pytest.raises(asyncio.CancelledError):
            await follower


async def test_of_simultaneous_opens_exactly_as_many_win_as_there_is_room_for(
    replicas: tuple[Replica, Replica],
) -> None:
    """C7: over both replicas, new nodes and known ones, again and again."""
    one, two = replicas
    for turn in range(3):
        calls = [
            replica.service.OpenSessions(
                open_request(an_open(f"edge-{number}"), dispatcher_id=f"d{number % 3}")
            )
            for number in range(20)
            for replica in [random.choice(replicas)]
        ]
        verdicts = [answer.verdicts[0] for answer in await asyncio.gather(*calls)]
        assert sum(verdict.epoch > 0 for verdict in verdicts) == LIMIT, turn
        usage = await two.admin.GetLimits(pb.GetLimitsRequest())
        assert (usage.nodes, dict(usage.nodes_by_connector)) == (LIMIT, {"c1": LIMIT})
        for number, verdict in enumerate(verdicts):
            if verdict.epoch:
                closing = close_request(
                    f"edge-{number}", verdict.epoch, link_pb2.CLOSE_REASON_EDGE_CLOSED, f"d{number % 3}"
                )
                await one.service.CloseSessions(closing)
        assert (await two.admin.GetLimits(pb.GetLimitsRequest())).nodes == 0


@SHORT_LEASE
async def test_a_dispatcher_that_falls_silent_is_lost_once(replicas: tuple[Replica, Replica]) -> None:
    """C35: both reapers see it; the events of its sessions are handed to one other dispatcher, once each."""
    one, two = replicas
    for number in range(3):
        await active(one.service, f"edge-{number}", "d1")
    renewed: list[str] = []
    counter = 0

    async def handed() -> bool:
        nonlocal counter
        counter += 1
        replica = replicas[counter % 2]
        answer = await replica.service.RenewLease(
            pb.RenewLeaseRequest(dispatcher_id="d2", name="two", address="127.0.0.1:2", counter=counter)
        )
        for event in answer.adopted_events:
            renewed.append(f"{event.kind} {event.node_id}")
            await one.service.AcknowledgeEvents(pb.AcknowledgeEventsRequest(event_ids=[event.event_id]))
        return len(renewed) >= 6

    await until(handed)
    assert sorted(renewed) == sorted(
        f"{kind} edge-{number}" for kind in ("connected", "disconnected") for number in range(3)
    )
    reaped = "cloudhub_sessions_reaped_total"
    for what in ("lost", "expired"):
        counts = [
            replica.app.metrics.registry.get_sample_value(reaped, {"what": what}) or 0 for replica in replicas
        ]
        assert sum(counts) == 3
    assert (await one.admin.GetLimits(pb.GetLimitsRequest())).nodes == 0
    listed = await two.admin.ListSessions(pb.ListSessionsRequest(states=[pb.SESSION_STATE_CLOSED]))
    assert {session.close_reason for session in listed.sessions} == {link_pb2.CLOSE_REASON_DISPATCHER_LOST}


async def test_every_process_is_listed_at_every_replica(replicas: tuple[Replica, Replica]) -> None:
    """With its load; a replica that stops is gone at once."""
    one, two = replicas
    renewed = await one.service.RenewLease(
        pb.RenewLeaseRequest(
            dispatcher_id="d1",
            name="north",
            address="127.0.0.1:1",
            counter=1,
            sessions=7,
            connectors=[
                pb.ConnectorLoad(connector_id="c1", name="edge-north", links=7, address="10.0.0.7:50053")
            ],
        )
    )
    assert [(peer.dispatcher_id, peer.address) for peer in renewed.dispatchers] == [("d1", "127.0.0.1:1")]
    for replica in replicas:
        listed = await replica.admin.ListInstances(pb.ListInstancesRequest())
        shown = [(one.service, one.name, one.address, one.nodes) for one in listed.instances]
        assert sorted(shown) == [
            ("connector", "edge-north", "10.0.0.7:50053", 7),
            ("dispatcher", "north", "127.0.0.1:1", 7),
            ("sessions", "sessions-0", f"127.0.0.1:{one.app.port}", 0),
            ("sessions", "sessions-1", f"127.0.0.1:{two.app.port}", 0),
        ]
        assert all(0 <= instance.silent_seconds < 2 for instance in listed.instances)


@SHORT_LEASE
async def test_a_replica_that_was_killed_is_dropped_by_the_others(
    opened_store: OpenedStore, replicas: tuple[Replica, Replica]
) -> None:
    """Its row stands still; nobody else's clock is asked."""
    registry = SqlRegistry(await opened_store(), Limits())
    await registry.beat(records.Replica("killed", "sessions-9", "127.0.0.1:9"))

    async def listed() -> list[str]:
        answer = await replicas[0].admin.ListInstances(pb.ListInstancesRequest())
        return sorted(instance.name for instance in answer.instances if instance.service == "sessions")

    assert await listed() == ["sessions-0", "sessions-1", "sessions-9"]

    async def is_gone() -> bool:
        return await listed() == ["sessions-0", "sessions-1"]

    await until(is_gone)


@pytest.mark.no_cover
async def test_counters_stay_exact_under_any_concurrency(opened_store: OpenedStore) -> None:
    """C7, invariant 5: opens, takeovers, transfers, ends, evictions, deletions and losses through two
    replicas at once; no transaction fails because of another."""
    limits = Limits(per_connector=6, per_project=10, total=14)
    registries = [SqlRegistry(await opened_store(), limits) for _ in range(2)]

    async def work(seed: int) -> None:
        chooser = random.Random(seed)
        counter = 0
        for _ in range(40):
            registry = chooser.choice(registries)
            names = chooser.sample([f"edge-{number}" for number in range(24)], chooser.randint(1, 6))
            dispatcher_id = f"d{chooser.randint(1, 3)}"
            match chooser.randint(1, 8):
                case 1 | 2 | 3:
                    entries = [
                        opening(name, f"p{chooser.randint(1, 2)}", f"c{chooser.randint(1, 3)}")
                        for name in names
                    ]
                    results = (await registry.open(dispatcher_id, entries, NOW)).results
                    refs = [
                        Ref(name, result.epoch)
                        for name, result in zip(names, results, strict=True)
                        if result.epoch
                    ]
                    await registry.activate(dispatcher_id, refs, NOW)
                case 4 | 5:
                    held = await registry.held(dispatcher_id, "", 4)
                    endings = [Ending(ref.node_id, ref.epoch, Reason.EDGE_CLOSED) for ref in held]
                    await registry.close(dispatcher_id, endings, NOW)
                case 6:
                    await registry.delete_nodes(names, NOW)
                case 7:
                    counter += 1
                    await registry.renew(renewal(dispatcher_id, seed * 1000 + counter), NOW, 10)
                    await registry.acknowledge([])
                case _:
                    for lease in await registry.leases():
                        seen = Observation(lease.dispatcher_id, lease.renewals)
                        await registry.lose(seen, NOW)
                        await registry.expire(seen, NOW, 3)

    async with asyncio.TaskGroup() as group:
        for seed in range(6):
            group.create_task(work(seed))
    sessions = await registries[0].page(Filter(states=frozenset(State)), "", 1000)
    usage = await registries[1].usage(most=1000)
    exact = recounted(sessions)
    assert {place: nodes for place, nodes in usage.counts.items() if nodes} == exact
    assert all(nodes <= usage.limits.of(place) for place, nodes in exact.items())

"""A hub of two replicas of each service on PostgreSQL: what one of each keeps, all of them keep together."""

import asyncio
import gc
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from edge.store import read_objects
from services.connector.edge_link import EdgeLink
from services.dispatcher.entry import Entry
from services.dispatcher.node_session import NodeSession
from services.dispatcher.outbox import schema as outbox_schema
from services.dispatcher.policy import NodeDelivery
from services.runtime.rpc import error_reason
from services.sessions import schema as sessions_schema
from tests.hub.test_node_deletion import TABLES, deletion
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, StockEdge, Subscriber, request, running_hub
from tests.support.postgres import SURVIVES_KILL, Databases, running_databases
from tests.support.processes import eventually
from tests.support.routes import Routes, routed

ACTIVE, CLOSED = sessions_pb2.SESSION_STATE_ACTIVE, sessions_pb2.SESSION_STATE_CLOSED
DISPATCHERS = ("dispatcher", "dispatcher-2")
CONNECTORS = ("connector", "connector-2")


@asynccontextmanager
async def replicated(
    folder: Path, databases: Databases, authority: TestAuthority, **settings: Any
) -> AsyncIterator[RunningHub]:
    """Two of each over databases of their own; `settings` by service."""
    urls = {
        "sessions": await databases.fresh(sessions_schema.SCHEMA),
        "dispatcher": await databases.fresh(outbox_schema.SCHEMA),
    }
    async with running_hub(
        folder, authority, dispatchers=2, connectors=2, registries=2, databases=urls, **settings
    ) as hub:
        yield hub


@pytest.fixture
async def hub(tmp_path: Path, databases: Databases, authority: TestAuthority) -> AsyncIterator[RunningHub]:
    async with replicated(tmp_path, databases, authority) as running:
        yield running


@pytest.fixture
def routes(hub: RunningHub) -> Iterator[Routes]:
    with routed(hub) as made:
        yield made


async def receives(hub: RunningHub, edge: StockEdge, version: int, through: str) -> None:
    """A message published now through this dispatcher reaches the edge, and its answer counts."""
    await hub.accept(request(edge.node_id, name="probe", version=version), through=through)
    message = await edge.next()
    assert message["header"]["resourceversion"] == str(version)
    await edge.answer(message)
    await hub.until_state(edge.node_id, "uid-probe", pb.DELIVERY_STATE_ACKNOWLEDGED)


def links(hub: RunningHub) -> int:
    """How many links all connectors have."""
    return sum(len(part.app.links) for part in hub.connectors)


def holders(hub: RunningHub, node_id: str) -> list[str]:
    """The dispatchers that have a session of the node."""
    return [part.name for part in hub.dispatchers if node_id in part.app.delivery.sessions]


@pytest.mark.parametrize("how", ["close", "cut", "stay", "move"])
async def test_a_link_elsewhere_takes_over_whatever_becomes_of_the_first(
    hub: RunningHub, routes: Routes, how: str
) -> None:
    """C1: the first, at another connector and dispatcher, ends before, while and after the second opens,
    or is being moved to the second's dispatcher meanwhile."""
    version = 0
    for turn in range(4):
        here, there = turn % 2, 1 - turn % 2
        for number in (here, there):
            routes.lead(hub.connectors[number], hub.dispatchers[number])
        first = await hub.open_edge(at=CONNECTORS[here])
        await eventually(lambda here=here: holders(hub, "edge-1") == [DISPATCHERS[here]])  # type: ignore[misc]
        opening = asyncio.create_task(hub.open_edge(at=CONNECTORS[there]))
        if how == "close":
            await first.connection.close()
        elif how == "cut":
            first.cut()
        elif how == "move":
            routes.lead(hub.connectors[here], hub.dispatchers[there])
        second = await opening
        if how in ("stay", "move"):
            assert (await first.closed())[0] == 4001
        for through in DISPATCHERS:
            version += 1
            await receives(hub, second, version, through)
        session = await hub.session("edge-1")
        assert session.state == ACTIVE
        await eventually(lambda: links(hub) == 1)
        await eventually(lambda there=there: holders(hub, "edge-1") == [DISPATCHERS[there]])  # type: ignore[misc]
        version += 1
        await receives(hub, second, version, DISPATCHERS[here])
        assert (await hub.session("edge-1")).epoch == session.epoch
        await second.connection.close()
        await eventually(lambda: links(hub) == 0)


async def test_simultaneous_links_through_both_connectors_leave_one(hub: RunningHub, routes: Routes) -> None:
    """C1, invariant 4: whichever opened last is the node's session, at one dispatcher, and is sent to."""
    for turn in range(3):
        opening = (hub.open_edge(at=CONNECTORS[number % 2]) for number in range(6))
        edges = await asyncio.gather(*opening, return_exceptions=True)
        opened = [edge for edge in edges if isinstance(edge, StockEdge)]
        await eventually(lambda: links(hub) == 1)
        await eventually(lambda: len(holders(hub, "edge-1")) == 1)
        assert (await hub.session("edge-1")).state == ACTIVE
        await hub.accept(request(version=turn + 1), through=DISPATCHERS[turn % 2])
        reading = {asyncio.create_task(edge.next()): edge for edge in opened}
        await asyncio.wait(reading)
        (task,) = [task for task in reading if task.exception() is None]
        assert task.result()["header"]["resourceversion"] == str(turn + 1)
        await reading[task].answer(task.result())
        await hub.until_state("edge-1", "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)
        await asyncio.gather(*(edge.connection.close() for edge in opened))
        await hub.until_session("edge-1", lambda session: session.state == CLOSED)


async def test_after_a_hundred_reconnects_everything_is_that_of_one_link(
    hub: RunningHub, routes: Routes, databases: Databases
) -> None:
    """C2, invariant 6: by turns through both connectors and dispatchers, moved between these now and then."""
    kinds = (EdgeLink, Entry, NodeDelivery, NodeSession)
    connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cloudhub'"

    async def figures() -> tuple[int, int, int]:
        """Tasks, descriptors that are no connection of a pool, objects of links and sessions."""
        pooled = int(await asyncio.to_thread(databases.server.sql, connections))
        gc.collect()
        objects = sum(isinstance(thing, kinds) for thing in gc.get_objects())
        descriptors = len(os.listdir("/proc/self/fd")) - pooled  # noqa: PTH208
        return len(asyncio.all_tasks()), descriptors, objects

    async def reconnected(former: StockEdge, number: int) -> StockEdge:
        """A link elsewhere, before or after the former one has ended in some way."""
        if number % 3:
            await former.connection.close()
        elif number % 2:
            former.cut()
        here, there = number % 2, 1 - number % 2
        edge = await hub.open_edge(at=CONNECTORS[here])
        if number % 10 == 0:
            await hub.accept(request(version=number))
            await edge.next()
            routes.lead(hub.connectors[here], hub.dispatchers[there])
            # It is in flight, so it is sent again after the move.
            await edge.answer(await edge.next())
            routes.lead(hub.connectors[here], hub.dispatchers[here])
        former.connection.transport.abort()
        return edge

    async def quiet(edge: StockEdge, version: int) -> None:
        """One link at one dispatcher, nothing under way."""
        await receives(hub, edge, version, DISPATCHERS[0])
        await eventually(lambda: links(hub) == 1 and len(holders(hub, "edge-1")) == 1)

    edge = await hub.open_edge(at=CONNECTORS[1])
    for number in range(1, 22):
        edge = await reconnected(edge, number)
    await quiet(edge, 1)
    before = await figures()
    for number in range(22, 132):
        edge = await reconnected(edge, number)
    await quiet(edge, 2)
    deadline = asyncio.get_running_loop().time() + 10
    # Loops of either dispatcher may have the last session or two in hand that they worked for.
    most = (before[0], before[1], before[2] + 8)
    while any(now > then for now, then in zip(await figures(), most, strict=True)):
        assert asyncio.get_running_loop().time() < deadline, (before, await figures())
        await asyncio.sleep(0.05)
    await edge.connection.close()
    listed = sessions_pb2.ListSessionsRequest(states=sessions_pb2.SessionState.values()[1:])
    page = await hub.sessions_admin.ListSessions(listed, timeout=5)
    assert len(page.sessions) == 1, "one row per node, however often it came"


async def test_publishing_to_absent_nodes_through_both_dispatchers_leaves_nothing_in_memory(
    hub: RunningHub,
) -> None:
    """C3: 4 000 messages to 50 nodes without a session: rows, but no tasks, queues, timers or hints."""

    def kept() -> set[int]:
        gc.collect()
        kinds = (Entry, NodeDelivery, NodeSession)
        return {id(thing) for thing in gc.get_objects() if isinstance(thing, kinds)}

    before = kept()  # of tests that ran in this process
    nodes = [f"absent-{number}" for number in range(50)]
    for through in DISPATCHERS:
        await hub.accept(request(*nodes, name=f"first-{through}"), through=through)
    tasks = len(asyncio.all_tasks())
    await asyncio.gather(
        *(
            hub.accept(*(request(*nodes, name=f"{through}-{n}") for n in range(39)), through=through)
            for through in DISPATCHERS
        )
    )
    await eventually(lambda: kept() <= before, 10, "no entry of a message")
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks, 10, "as many tasks as before")
    assert not any(part.app.delivery.sessions for part in hub.dispatchers)
    listed = await hub.dispatcher_admin.ListNodes(pb.ListNodesRequest(page_size=1000), timeout=5)
    assert [node.pending for node in listed.nodes] == [80] * 50


@asynccontextmanager
async def telling(hub: RunningHub, module: str) -> AsyncIterator[list[pb.UpstreamDelivery]]:
    """What subscribers at both dispatchers get, in the order in which they do; each settles it at once."""
    told: list[pb.UpstreamDelivery] = []

    async def follow(subscriber: Subscriber) -> None:
        while True:
            delivery = await subscriber.next(60)
            told.append(delivery)
            await subscriber.acknowledge(delivery)

    async with (
        hub.subscriber(module, through="dispatcher") as one,
        hub.subscriber(module, through="dispatcher-2") as other,
    ):
        await eventually(
            lambda: all(module in part.app.upstream.served() for part in hub.dispatchers), 10, "subscribed"
        )
        following = [asyncio.create_task(follow(subscriber)) for subscriber in (one, other)]
        try:
            yield told
        finally:
            for task in following:
                task.cancel()
            await asyncio.wait(following)


async def test_connected_comes_first_and_disconnected_last_exactly_once(
    hub: RunningHub, routes: Routes
) -> None:
    """C8: sessions of a node at either dispatcher by turns, each with reports and a move before its end,
    subscribers at both."""
    epochs: list[list[int]] = []
    async with telling(hub, "edgecontroller") as told:
        for turn in range(6):
            here, there = turn % 2, 1 - turn % 2
            routes.lead(hub.connectors[here], hub.dispatchers[here])
            async with hub.edge(at=CONNECTORS[here]) as edge:
                opened = await hub.session("edge-1")
                for number in range(3):
                    await edge.send("insert", f"default/event/e{turn}-{number}", number)
                await eventually(
                    lambda turn=turn: sum(one.message.operation == "insert" for one in told) == 3 * (turn + 1)  # type: ignore[misc]
                )
                routes.lead(hub.connectors[here], hub.dispatchers[there])
                moved = await hub.until_session(
                    "edge-1",
                    lambda one, opened=opened: one.state == ACTIVE and one.epoch > opened.epoch,  # type: ignore[misc]
                )
                epochs.append([opened.epoch, moved.epoch])
        await eventually(lambda: len(told) >= 5 * 6, 10, "everything was told")
        await receives_nothing_more(told)
    by_session: dict[int, list[str]] = defaultdict(list)
    for delivery in told:
        (turn,) = [turn for turn, own in enumerate(epochs) if delivery.epoch in own]
        by_session[turn].append(delivery.message.operation)
    assert list(by_session) == list(range(6)), "session after session"
    assert list(by_session.values()) == [["connected", "insert", "insert", "insert", "disconnected"]] * 6
    assert len({one.message.id for one in told}) == len(told)


async def receives_nothing_more(told: list[pb.UpstreamDelivery]) -> None:
    """Nothing comes for as long as a repetition would take."""
    count = len(told)
    with pytest.raises(AssertionError):
        await eventually(lambda: len(told) > count, 0.5)


async def test_a_session_that_is_taken_over_elsewhere_is_told_to_be_over_once(
    hub: RunningHub, routes: Routes
) -> None:
    """C8: whatever reports were under way, `disconnected` is the last word about a session, and the next
    one's `connected` comes after it."""
    async with telling(hub, "edgecontroller") as told:
        edges = []
        for turn in range(8):
            edge = await hub.open_edge(at=CONNECTORS[turn % 2])
            edges.append(edge)
            for number in range(5):
                await edge.send("insert", f"default/event/e{turn}-{number}", number)
        await edge.connection.close()
        await eventually(
            lambda: sum(one.message.operation == "disconnected" for one in told) >= 8, 15, "all are over"
        )
        await receives_nothing_more(told)
        for edge in edges:
            await edge.connection.close()
    by_epoch: dict[int, list[str]] = defaultdict(list)
    # An event whose confirmation was under way at the takeover may be told again, by the same id.
    for delivery in {one.message.id: one for one in told}.values():
        by_epoch[delivery.epoch].append(delivery.message.operation)
    assert list(by_epoch) == sorted(by_epoch)
    for operations in by_epoch.values():
        assert (operations[0], operations[-1]) == ("connected", "disconnected"), by_epoch
        assert set(operations[1:-1]) <= {"insert"}


async def test_an_answer_to_connected_through_the_other_dispatcher_reaches_the_node(
    hub: RunningHub, routes: Routes
) -> None:
    """C8: also NO-ACK, and though that dispatcher may remember the node elsewhere."""
    async with hub.subscriber("edgecontroller", through="dispatcher") as cloud:
        for turn in range(12):
            here, there = turn % 2, 1 - turn % 2
            opening = asyncio.create_task(hub.open_edge(at=CONNECTORS[here]))
            told = await cloud.until(lambda one: one.message.operation == "connected")
            for mode in (pb.ACK_MODE_NO_ACK, pb.ACK_MODE_ACK):
                answer = request(told.node_id, name=f"mode-{mode}", version=turn + 1, ack_mode=mode)
                await hub.accept(answer, through=DISPATCHERS[there])
            edge = await opening
            got = await edge.take(2)
            assert {message["route"]["resource"] for message in got} == {
                f"default/configmap/mode-{mode}" for mode in (pb.ACK_MODE_NO_ACK, pb.ACK_MODE_ACK)
            }
            assert {message["header"]["resourceversion"] for message in got} == {str(turn + 1)}
            for message in got:
                await edge.answer(message)
            await hub.until_state("edge-1", f"uid-mode-{pb.ACK_MODE_ACK}", pb.DELIVERY_STATE_ACKNOWLEDGED)
            await edge.connection.close()


def rows_of(databases: Databases, hub: RunningHub, node_id: str = "edge-1") -> dict[str, int]:
    """How many rows each table has of the node; tables without any are left out."""
    found: dict[str, int] = {}
    for service, tables in TABLES.items():
        counts = " UNION ALL ".join(
            f"SELECT '{table}', count(*) FROM {table} WHERE node_id = '{node_id}'" for table in tables
        )
        database = hub.databases[service].rpartition("/")[2]
        for row in databases.server.sql(counts, database).splitlines():
            table, _, count = row.partition("|")
            found[table] = int(count)
    return {table: count for table, count in found.items() if count}


async def no_rows_left(databases: Databases, hub: RunningHub, node_id: str = "edge-1") -> None:
    """Returns when no table has a row of the node."""
    left: dict[str, int] = {"": 1}
    try:
        async with asyncio.timeout(15):
            while left:
                left = await asyncio.to_thread(rows_of, databases, hub, node_id)
    except TimeoutError:
        raise AssertionError(f"rows of {node_id} are left: {left}") from None


async def test_a_node_deleted_through_the_other_dispatcher_is_gone_and_comes_again_clean(
    hub: RunningHub, routes: Routes, databases: Databases
) -> None:
    """C10: its link is closed, its end told once, nothing is left, and nobody else notices; over again with
    the dispatchers changed about."""
    async with telling(hub, "edgecontroller") as told, hub.edge("edge-2", at="connector-2"):
        for turn in range(3):
            here, there = turn % 2, 1 - turn % 2
            edge = await hub.open_edge("edge-1", at=CONNECTORS[here])
            await hub.accept(request("edge-1", version=9 - turn), through=DISPATCHERS[there])
            await hub.accept(request("edge-1", "edge-2", name=f"more-{turn}"), through=DISPATCHERS[here])
            message, _ = await edge.take(2)
            assert message["header"]["resourceversion"] == str(9 - turn), "lower than in the former life"
            await edge.answer(message)
            (outcome,) = await hub.publish(deletion(), through=DISPATCHERS[there])
            assert outcome.outcome == pb.OUTCOME_ACCEPTED
            assert (await edge.closed())[0] == 4003
            await eventually(lambda: not holders(hub, "edge-1"))
            if turn % 2:
                # Otherwise it is back before anything of the former life was swept up.
                await no_rows_left(databases, hub)
                with pytest.raises(grpc.aio.AioRpcError) as unknown:
                    await hub.session("edge-1")
                assert error_reason(unknown.value) == "UNKNOWN_NODE"

        def events() -> list[str]:
            # One whose confirmation was under way when the node came back may be told again, by the same id.
            distinct = {one.message.id: one.message.operation for one in told if one.node_id == "edge-1"}
            return list(distinct.values())

        await eventually(lambda: len(events()) >= 6, 10, "every life is told of")
        assert events() == ["connected", "disconnected"] * 3
        usage = await hub.sessions_admin.GetLimits(sessions_pb2.GetLimitsRequest(), timeout=5)
        assert usage.nodes == 1
        assert rows_of(databases, hub, "edge-2")


class Publishers:
    """One at each dispatcher: versions of a few objects to all nodes, until `stop`."""

    def __init__(self, hub: RunningHub, *nodes: str, objects: int = 0) -> None:
        self._hub = hub
        self._nodes = nodes
        self._objects = objects
        self._going = True
        self.accepted: dict[str, int] = {}
        """Per object the highest version that was accepted for every node."""
        self.counts = dict.fromkeys(DISPATCHERS, 0)
        """Messages accepted, by dispatcher."""
        self.failures = dict.fromkeys(DISPATCHERS, 0)

    async def run(self, through: str) -> None:
        """Publishes through one dispatcher; one that refuses or is away is asked again."""
        number = 0
        while self._going:
            number += 1
            name = f"{through}-{number % self._objects if self._objects else number}"
            published = request(*self._nodes, name=name, version=number)
            try:
                outcomes = await self._hub.publish(published, through=through)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                self.failures[through] += 1
                await asyncio.sleep(0.05)
                continue
            if all(one.outcome == pb.OUTCOME_ACCEPTED for one in outcomes):
                self.accepted[name] = number
                self.counts[through] += 1
            else:
                assert all(one.outcome in (pb.OUTCOME_ACCEPTED, pb.OUTCOME_UNAVAILABLE) for one in outcomes)
                self.failures[through] += 1
                await asyncio.sleep(0.05)

    async def more(self, number: int, *through: str) -> None:
        """Returns when so many further messages were accepted by each."""
        wanted = {name: self.counts[name] + number for name in through or DISPATCHERS}
        await eventually(
            lambda: all(self.counts[name] >= count for name, count in wanted.items()),
            20,
            f"{number} more accepted",
        )

    def stop(self) -> None:
        """After the message under way."""
        self._going = False


async def arrived(database: Path, node_id: str, accepted: Mapping[str, int]) -> None:
    """Returns when the node has on its disk of each object the version that was accepted, or a later one."""

    def missing() -> dict[str, int]:
        has = {one.uid: int(one.version) for one in read_objects(database) if one.node_id == node_id}
        return {name: version for name, version in accepted.items() if has.get(f"uid-{name}", 0) < version}

    try:
        await eventually(lambda: not missing())
    except AssertionError:
        raise AssertionError(f"{node_id} misses {missing()}") from None


async def test_while_a_dispatcher_or_a_connector_drains_the_others_take_over(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C11: under load nothing accepted is lost, and each part ends within its grace. Of a dispatcher no edge
    notices anything; the links of a connector are closed, and come back at the other."""
    nodes = [f"edge-{number}" for number in range(8)]
    grace = {"shutdown_seconds": 6.0}
    loop = asyncio.get_running_loop()
    async with (
        replicated(tmp_path, databases, authority, dispatcher=grace, connector=grace) as hub,
        hub.fleet(*nodes) as fleet,
    ):
        publishers = Publishers(hub, *nodes, objects=3)
        async with asyncio.TaskGroup() as group:
            for through in DISPATCHERS:
                group.create_task(publishers.run(through))
            await publishers.more(20)
            began = loop.time()
            await hub.dispatcher.stop()
            assert loop.time() - began < grace["shutdown_seconds"]
            await publishers.more(20, "dispatcher-2")
            await hub.dispatcher.start()
            await hub.attached()
            assert fleet.total("links_opened") == len(nodes)
            await publishers.more(20)
            began = loop.time()
            await hub.connector.stop()
            assert loop.time() - began < grace["shutdown_seconds"]
            async with asyncio.timeout(15):
                await fleet.connected()
            await publishers.more(20)
            publishers.stop()
        assert publishers.failures["dispatcher"], "it was away for a while"
        for node_id in nodes:
            await arrived(tmp_path / "edges.db", node_id, publishers.accepted)
        assert len(hub.connectors[1].app.links) == len(nodes)


@pytest.fixture
def own_databases() -> Iterator[Databases]:
    """A server that the test may stop and kill."""
    with running_databases(SURVIVES_KILL) as running:
        yield running


@asynccontextmanager
async def locked(url: str, table: str) -> AsyncIterator[None]:
    """Nobody writes to the table meanwhile."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN SHARE MODE")
            yield
    finally:
        await connection.close()


async def test_the_answer_comes_after_the_commit(hub: RunningHub) -> None:
    """C12: while the store commits nothing neither dispatcher answers, and no message is on the wire."""
    async with hub.edge() as edge:
        async with locked(hub.databases["dispatcher"], "delivery"):
            publishing = [
                asyncio.create_task(hub.publish(request(name=through), through=through))
                for through in DISPATCHERS
            ]
            await edge.gets_nothing(0.5)
            assert not any(task.done() for task in publishing)
        for task in publishing:
            (outcome,) = await task
            assert outcome.outcome == pb.OUTCOME_ACCEPTED
        got = {message["route"]["resource"] for message in await edge.take(2)}
        assert got == {f"default/configmap/{through}" for through in DISPATCHERS}


async def test_what_was_accepted_before_the_database_was_killed_arrives(
    tmp_path: Path, own_databases: Databases, authority: TestAuthority
) -> None:
    """C12, C25: kill -9 under load through both dispatchers; the rest of the hub goes on by itself."""
    server = own_databases.server
    async with (
        replicated(tmp_path, own_databases, authority, dispatcher={"unknown_node_most_rows": 10_000}) as hub,
        hub.fleet("edge-1", "edge-2") as fleet,
    ):
        publishers = Publishers(hub, "edge-1", "edge-2", "absent")
        async with asyncio.TaskGroup() as group:
            for through in DISPATCHERS:
                group.create_task(publishers.run(through))
            for kill in range(1, 3):
                await publishers.more(30)
                await asyncio.to_thread(server.kill)
                await eventually(lambda kill=kill: min(publishers.failures.values()) >= 2 * kill)  # type: ignore[misc]
                server.start()
                await asyncio.to_thread(server.wait_ready)
            await publishers.more(30)
            publishers.stop()
        for node_id in ("edge-1", "edge-2"):
            await arrived(tmp_path / "edges.db", node_id, publishers.accepted)
        async with hub.fleet("absent", database=tmp_path / "absent.db"):
            await arrived(tmp_path / "absent.db", "absent", publishers.accepted)
        assert fleet.total("links_opened") == 2, "nobody's session ended"


async def until_answered(hub: RunningHub) -> None:
    """Returns when questions reach the store again: just after it is back, one may still get a connection of
    the time before, and UNAVAILABLE."""
    async with asyncio.timeout(10):
        while True:
            try:
                await hub.explain("edge-1", key=f"uid-{DISPATCHERS[0]}")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)
            else:
                return


async def test_while_the_database_is_away_sessions_go_on_and_acknowledgements_are_stored_later(
    tmp_path: Path, own_databases: Databases, authority: TestAuthority
) -> None:
    """C25, invariant 9: UNAVAILABLE to publishers at both dispatchers; nothing is sent again for it."""
    server = own_databases.server
    patient = {"ack_seconds": 30}
    async with (
        replicated(tmp_path, own_databases, authority, dispatcher=patient) as hub,
        hub.edge("edge-1") as edge,
        hub.edge("edge-2", at="connector-2") as other,
    ):
        epochs = [(await hub.session(node_id)).epoch for node_id in ("edge-1", "edge-2")]
        for through in DISPATCHERS:
            await hub.accept(request("edge-1", "edge-2", name=through), through=through)
        sent = {one: await one.take(2) for one in (edge, other)}
        await asyncio.to_thread(server.stop)
        for one, messages in sent.items():
            for message in messages:
                await one.answer(message)
        for through in DISPATCHERS:
            asked = request(name="later", version=2, message_id="m2")
            (outcome,) = await hub.publish(asked, through=through)
            assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_UNAVAILABLE, "STORE_UNAVAILABLE")
        server.start()
        await asyncio.to_thread(server.wait_ready)
        await until_answered(hub)
        for node_id in ("edge-1", "edge-2"):
            for through in DISPATCHERS:
                await hub.until_state(node_id, f"uid-{through}", pb.DELIVERY_STATE_ACKNOWLEDGED, 20)
        # The same id again, as a publisher does whose outcome is unknown.
        await hub.accept(asked, through="dispatcher-2")
        assert (await edge.next())["header"]["msg_id"] == "m2"
        await edge.gets_nothing(0.2)
        await other.gets_nothing(0.1)
        assert [(await hub.session(node_id)).epoch for node_id in ("edge-1", "edge-2")] == epochs

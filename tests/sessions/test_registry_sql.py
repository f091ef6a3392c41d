"""What only the SQL registry does: `services.sessions.registry_sql` and its parts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest
from sqlalchemy import Connection, Dialect, Executable, Select, create_mock_engine, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import OperationalError

from services.runtime.errors import Refused, StoreUnavailable
from services.runtime.store import open_store
from services.runtime.watched_store import WatchedStore
from services.sessions import replicas_sql, schema
from services.sessions.book import MAX_EVENTS_PER_NODE
from services.sessions.lifecycle import Reason, State
from services.sessions.limits import Limits, LimitsChange, Scope
from services.sessions.records import Ending, Ref, Replica
from services.sessions.registry_sql import SqlRegistry
from services.sessions.upsert import insert_missing, upsert
from tests.support.sessions import opening, renewal

T = TypeVar("T")
NOW = 1_700_000_000_000
DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


async def opened_store(folder: Path) -> WatchedStore:
    url = f"sqlite:///{folder}/sessions.db"
    return await open_store(url, schema.SCHEMA)


async def row_counts(store: WatchedStore) -> dict[str, int]:
    def count(connection: Connection) -> dict[str, int]:
        return {
            name: len(connection.execute(select(table)).all())
            for name, table in schema.metadata.tables.items()
        }

    return await store.read(count)


async def test_everything_is_still_there_after_a_restart(tmp_path: Path) -> None:
    store = await opened_store(tmp_path)
    registry = SqlRegistry(store, Limits())
    epoch = (await registry.open("d1", [opening()], NOW)).results[0].epoch
    event = (await registry.activate("d1", [Ref("edge-1", epoch)], NOW)).results[0].event
    await registry.change_limits(LimitsChange(total=7, projects={"p1": 2}))
    await registry.renew(renewal("d1"), NOW, 10)
    await store.close()
    store = await opened_store(tmp_path)
    registry = SqlRegistry(store, Limits())
    session = await registry.get("edge-1")
    assert session
    assert (session.epoch, session.state) == (epoch, State.ACTIVE)
    usage = await registry.usage()
    assert usage.limits == Limits(total=7, projects={"p1": 2})
    assert usage.counts[Scope.TOTAL, ""] == 1
    assert event
    assert await registry.acknowledge([event.event_id]) == 1
    await store.close()


async def test_a_thousand_reconnects_of_a_node_leave_the_rows_of_one(tmp_path: Path) -> None:
    """C2: no row too many, from connectors that come and go."""
    store = await opened_store(tmp_path)
    registry = SqlRegistry(store, Limits())
    for index in range(100):
        entries = [opening(connector_id=f"c{index}-{step}") for step in range(10)]
        result = (await registry.open("d1", entries, NOW)).results[-1]
        await registry.activate("d1", [Ref("edge-1", result.epoch)], NOW)
    events = await store.read(lambda c: c.execute(select(schema.lifecycle_event.c.event_id)).scalars().all())
    assert len(events) == MAX_EVENTS_PER_NODE
    await registry.acknowledge(list(events))
    await registry.close("d1", [Ending("edge-1", result.epoch, Reason.EDGE_CLOSED)], NOW)
    assert await row_counts(store) == {
        "node_session": 1,
        "lifecycle_event": 1,
        "end_directive": 0,
        "dispatcher_lease": 1,
        "sessions_replica": 0,
        "slot_count": 1,
        "limit_change": 0,
        "enrolment_key": 0,
        "join_token": 0,
        "enrolled_node": 0,
        "node_certificate": 0,
    }
    await store.close()


class CountingStore:
    """A store that counts statements."""

    def __init__(self, store: WatchedStore) -> None:
        self._store = store
        self.statements = 0

    async def write(self, work: Callable[[Connection], T]) -> T:
        def counted(connection: Connection) -> T:
            execute = connection.execute

            def counting(*args: object) -> object:
                self.statements += 1
                return execute(*args)  # type: ignore[call-overload]

            connection.execute = counting  # type: ignore[method-assign, assignment]
            return work(connection)

        return await self._store.write(counted)

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._store.read(work)

    async def check(self) -> None:
        await self._store.check()


async def test_a_batch_is_few_statements_however_large(tmp_path: Path) -> None:
    """Opens are batched: a reconnect storm is a few large transactions."""
    store = await opened_store(tmp_path)
    counting = CountingStore(store)
    registry = SqlRegistry(counting, Limits())
    entries = [opening(f"edge-{index}") for index in range(1000)]
    results = (await registry.open("d1", entries, NOW)).results
    assert counting.statements < 16
    counting.statements = 0
    refs = [Ref(f"edge-{index}", result.epoch) for index, result in enumerate(results)]
    await registry.activate("d1", refs, NOW)
    assert counting.statements < 10
    counting.statements = 0
    again = (await registry.open("d2", entries, NOW)).results
    assert all(result.superseded_event and result.earlier_events for result in again)
    assert counting.statements < 16
    await store.close()


async def test_a_damaged_row_is_named_and_harms_no_other_node(tmp_path: Path) -> None:
    """Invariant 10: database content that no version writes gives a clear error."""
    store = await opened_store(tmp_path)
    registry = SqlRegistry(store, Limits())
    await registry.open("d1", [opening("edge-1"), opening("edge-2")], NOW)
    table = schema.node_session
    await store.write(
        lambda connection: connection.execute(
            update(table).where(table.c.node_id == "edge-1").values(epoch="what")
        )
    )
    with pytest.raises(StoreUnavailable, match=r"row of node 'edge-1' is damaged"):
        await registry.get("edge-1")
    assert await registry.get("edge-2")
    await store.close()


async def test_a_state_that_does_not_exist_cannot_be_stored(tmp_path: Path) -> None:
    store = await opened_store(tmp_path)
    registry = SqlRegistry(store, Limits())
    await registry.open("d1", [opening()], NOW)
    with pytest.raises(StoreUnavailable, match="CHECK"):
        await store.write(lambda connection: connection.execute(update(schema.node_session).values(state=9)))
    await store.close()


async def test_a_transaction_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The event, the session and the counters are one transaction."""
    store = await opened_store(tmp_path)
    registry = SqlRegistry(store, Limits())
    epoch = (await registry.open("d1", [opening()], NOW)).results[0].epoch
    before = await row_counts(store)

    class Failing(CountingStore):
        async def write(self, work: Callable[[Connection], T]) -> T:
            def failing(connection: Connection) -> T:
                work(connection)
                raise OperationalError("COMMIT", {}, Exception("disk full"))

            return await store.write(failing)

    broken = SqlRegistry(Failing(store), Limits())
    with pytest.raises(StoreUnavailable, match="disk full"):
        await broken.activate("d1", [Ref("edge-1", epoch)], NOW)
    with pytest.raises(StoreUnavailable, match="disk full"):
        await broken.open("d2", [opening("edge-2"), opening("edge-1")], NOW)
    assert await row_counts(store) == before
    session = await registry.get("edge-1")
    assert session
    assert (session.state, session.dispatcher_id) == (State.OPENING, "d1")
    await store.close()


def test_the_tables_can_be_made_on_postgresql_and_keys_start_with_the_node() -> None:
    made: list[str] = []
    engine = create_mock_engine(
        "postgresql://", lambda sql, *_: made.append(str(sql.compile(dialect=DIALECT)))
    )
    schema.metadata.create_all(engine)
    assert sum("CREATE TABLE" in text for text in made) == len(schema.metadata.tables)
    for table in (schema.node_session, schema.lifecycle_event, schema.end_directive):
        assert next(iter(table.primary_key)).name == "node_id"


def test_existing_rows_are_met_in_postgresqls_words() -> None:
    made_for = cast("Connection", SimpleNamespace(dialect=DIALECT))
    text = str(upsert(made_for, schema.limit_change).compile(dialect=DIALECT))
    assert "ON CONFLICT (scope, place) DO UPDATE SET nodes = excluded.nodes" in text
    text = str(insert_missing(made_for, schema.slot_count).compile(dialect=DIALECT))
    assert "ON CONFLICT DO NOTHING" in text


async def test_rows_are_locked_in_one_order_on_engines_that_lock_rows(tmp_path: Path) -> None:
    """C7: the lease, nodes by id, the total, other counters, events; what decides about a limit is locked
    until the commit."""
    store = await opened_store(tmp_path)
    locking: list[str] = []

    class Spying(CountingStore):
        async def write(self, work: Callable[[Connection], T]) -> T:
            def spied(connection: Connection) -> T:
                execute = connection.execute

                def spying(statement: Executable, *args: object) -> object:
                    text = str(statement.compile(dialect=DIALECT)) if isinstance(statement, Select) else ""
                    if "FOR UPDATE" in text:
                        locking.append(text)
                    return execute(statement, *args)  # type: ignore[call-overload]

                connection.execute = spying  # type: ignore[method-assign, assignment]
                return work(connection)

            return await store.write(spied)

    await SqlRegistry(Spying(store), Limits()).open("d1", [opening()], NOW)
    by_count = ", slot_count.scope, slot_count.place FOR UPDATE"
    orders = [
        "FROM dispatcher_lease",
        "ORDER BY node_session.node_id FOR UPDATE",
        # The total's row is made, then the others, which only its holder may make.
        *[by_count] * 3,
        "ORDER BY lifecycle_event.node_id, lifecycle_event.epoch, lifecycle_event.kind FOR UPDATE",
    ]
    assert "ORDER BY slot_count.scope !=" in locking[2]
    for text, order in zip(locking, orders, strict=True):
        assert order in text
    await store.close()


async def test_limits_of_projects_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 7: each opening reads them. What removes some goes; a refused one changes nothing."""
    monkeypatch.setattr("services.sessions.registry_sql.MAX_PROJECT_LIMITS", 3)
    store = await open_store(f"sqlite:///{tmp_path}/limits.db", schema.SCHEMA)
    registry = SqlRegistry(store, Limits())
    await registry.change_limits(LimitsChange(projects={"p1": 1, "p2": 2, "p3": 3}))
    said = r"projects: 4 would have a limit of their own, and at most 3 may"
    with pytest.raises(Refused, match=said) as refused:
        await registry.change_limits(LimitsChange(total=5, projects={"p4": 4}))
    assert (refused.value.reason, refused.value.metadata["field"]) == ("TOO_MANY_LIMITS", "projects")
    usage = await registry.usage()
    assert (usage.limits.total, sorted(usage.limits.projects)) == (0, ["p1", "p2", "p3"])
    assert (await registry.change_limits(LimitsChange(total=7))).limits.total == 7
    changed = await registry.change_limits(LimitsChange(projects={"p1": 0, "p4": 4}))
    assert changed.limits.projects == {"p2": 2, "p3": 3, "p4": 4}
    await store.close()


async def test_processes_on_record_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is started over and over leaves no row too many; those on record go on."""
    monkeypatch.setattr(replicas_sql, "MAX_REPLICAS", 2)
    store = await opened_store(tmp_path)
    registry = SqlRegistry(store, Limits())
    known = [Replica(f"e{number}", "enrolment-0", "", service="enrolment") for number in range(2)]
    for replica in known:
        await registry.beat(replica)
    with pytest.raises(Refused, match="no more are kept"):
        await registry.beat(Replica("e3", "enrolment-0", "", service="enrolment"))
    for replica in known:
        await registry.beat(replica)
    assert [replica.beats for replica in await registry.replicas()] == [2, 2]
    # Who keeps the record must not end for it.
    await registry.beat(Replica("s1", "sessions-0", "", service="sessions"))
    assert len(await registry.replicas()) == 3
    await store.close()

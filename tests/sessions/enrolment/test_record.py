"""Tokens, certificates and revocations on both engines: `services.sessions.enrolment.record_sql`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert, select

from services.runtime.errors import Refused
from services.runtime.store import migrate, open_store
from services.runtime.store_postgresql import PostgresStore
from services.runtime.store_sqlite import SqliteStore
from services.runtime.watched_store import WatchedStore
from services.sessions import schema
from services.sessions.enrolment import record_sql
from services.sessions.enrolment.record_sql import KEPT_MS, MOST_OFTEN_MS, MOST_PER_NODE, EnrolmentRecord
from services.sessions.enrolment.records import Refusal, RefusalReason, RevokedNode, TokenScope, Wanted
from services.sessions.limits import Limits
from services.sessions.records import Eviction
from services.sessions.registry_sql import SqlRegistry
from tests.support.postgres import Databases
from tests.support.sessions import opening

NOW = 1_700_000_000_000
DAY = 86_400_000
SCOPE = TokenScope("edge-*", "", 1, NOW, NOW + DAY)


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WatchedStore]:
    url = f"sqlite:///{tmp_path}/sessions.db"
    if request.param == "postgresql":
        url = await request.getfixturevalue("databases").fresh(schema.SCHEMA)
    opened = await open_store(url, schema.SCHEMA)
    yield opened
    await opened.close()


@pytest.fixture
def record(store: WatchedStore) -> EnrolmentRecord:
    return EnrolmentRecord(store)


def wanted(node_id: str = "edge-1", serial: str = "a1", key: str = "k1") -> Wanted:
    return Wanted(node_id, serial, NOW, NOW + DAY, key, "192.0.2.1")


async def made(record: EnrolmentRecord, scope: TokenScope = SCOPE, token_id: str = "1") -> str:
    return (await record.create_token(token_id, scope))[0]


def reason_of(verdict: Refusal | Wanted) -> RefusalReason | None:
    return verdict.reason if isinstance(verdict, Refusal) else None


async def test_a_token_of_one_use_lets_one_node_in(record: EnrolmentRecord) -> None:
    token = await made(record)
    assert reason_of(await record.issue_by_token(token, wanted(), NOW)) is None
    refused = await record.issue_by_token(token, wanted("edge-2", "a2", "k2"), NOW)
    assert reason_of(refused) is RefusalReason.TOKEN_USED_UP
    (issued,) = await record.certificates("", ("", ""), 10)
    assert (issued.node_id, issued.serial, issued.token_id) == ("edge-1", "a1", "1")
    assert [token.uses_left for token in await record.tokens(None, 100)] == [0]


async def test_of_nodes_that_use_a_token_at_once_exactly_as_many_get_in_as_it_has_uses(
    record: EnrolmentRecord,
) -> None:
    token = await made(record, replace(SCOPE, uses=3))
    asked = [
        record.issue_by_token(token, wanted(f"edge-{number}", f"a{number}", f"k{number}"), NOW)
        for number in range(1, 13)
    ]
    answers = [reason_of(answer) for answer in await asyncio.gather(*asked)]
    assert (answers.count(None), answers.count(RefusalReason.TOKEN_USED_UP)) == (3, 9)


async def test_of_replicas_that_are_asked_at_once_exactly_one_grants(databases: Databases) -> None:
    url = await databases.fresh(schema.SCHEMA)
    stores = [await open_store(url, schema.SCHEMA) for _ in range(2)]
    try:
        records = [EnrolmentRecord(store) for store in stores]
        token = await made(records[0])
        answers = await asyncio.gather(
            *(
                records[number % 2].issue_by_token(
                    token, wanted(f"edge-{number}", f"a{number}", f"k{number}"), NOW
                )
                for number in range(1, 9)
            )
        )
        assert [reason_of(answer) for answer in answers].count(None) == 1
    finally:
        for store in stores:
            await store.close()


async def test_a_request_whose_answer_was_lost_is_granted_the_same_again(record: EnrolmentRecord) -> None:
    """C46: one use of a token is one certificate on record, however often it is asked for."""
    token = await made(record)
    assert await record.issue_by_token(token, wanted(), NOW) == wanted()
    for number in range(40):
        assert await record.issue_by_token(token, wanted(serial=f"b{number}"), NOW + number) == wanted()
    stolen = await record.issue_by_token(token, wanted(serial="a3", key="k2"), NOW)
    assert reason_of(stolen) is RefusalReason.TOKEN_USED_UP
    assert [one.serial for one in await record.certificates("", ("", ""), 100)] == ["a1"]
    # One that has hardly any time left would be of no use.
    late = NOW + DAY // 2
    fresh = replace(wanted(serial="a2"), not_before_ms=late, not_after_ms=late + DAY)
    assert await record.issue_by_token(token, fresh, late) == fresh


async def test_of_each_node_the_newest_certificates_are_on_record_and_so_many_in_an_hour(
    record: EnrolmentRecord,
) -> None:
    """C46: a node that renews without end fills its own share, and others renew as ever."""
    at_ms = NOW
    for number in range(MOST_PER_NODE):
        got = await record.issue_by_certificate("f0", wanted(serial=f"a{number}"), at_ms)
        assert reason_of(got) is None
        at_ms += 1000
    refused = await record.issue_by_certificate("a1", wanted(serial="ff"), at_ms)
    assert reason_of(refused) is RefusalReason.NODE_TOO_OFTEN
    other = await record.issue_by_certificate("f0", wanted("edge-2", "c0"), at_ms)
    assert reason_of(other) is None
    at_ms = NOW + MOST_OFTEN_MS
    assert reason_of(await record.issue_by_certificate("a1", wanted(serial="ff"), at_ms)) is None
    serials = {one.serial for one in await record.certificates("edge-1", ("", ""), 100)}
    assert serials == {"ff", *(f"a{number}" for number in range(1, MOST_PER_NODE))}, "the oldest gave way"
    assert len(await record.certificates("edge-2", ("", ""), 100)) == 1


async def test_certificates_of_a_short_time_may_be_renewed_as_often_as_that_takes(
    record: EnrolmentRecord,
) -> None:
    second = 1000
    for number in range(3 * MOST_PER_NODE):
        now_ms = NOW + number * second // 2
        one = replace(wanted(serial=f"a{number}"), not_before_ms=now_ms, not_after_ms=now_ms + second)
        assert reason_of(await record.issue_by_certificate("f0", one, now_ms)) is None


async def test_a_revocation_holds_for_certificates_that_are_on_record_no_more(
    record: EnrolmentRecord, store: WatchedStore
) -> None:
    assert reason_of(await record.issue_by_certificate("f0", wanted(serial="aa"), NOW)) is None
    for number in range(MOST_PER_NODE):
        at_ms = NOW + (number + 1) * MOST_OFTEN_MS // 2
        assert reason_of(await record.issue_by_certificate("aa", wanted(serial=f"b{number}"), at_ms)) is None
    await record.revoke_node("edge-1", NOW + DAY)
    assert "revoked" in await opened(store, "aa")
    assert "revoked" in await opened(store, "b1")


async def test_an_opening_asks_for_the_certificate_shown_alone(
    record: EnrolmentRecord, store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody's openings wait while one of a revoked node is looked at."""
    for number in range(MOST_PER_NODE):
        await record.issue_by_certificate("f0", wanted(serial=f"a{number}"), NOW)
    await record.revoke_node("edge-1", NOW)
    read: list[object] = []
    execute = record_sql._issued_at_by_serial.execute

    def counted(*given: Any) -> list[Any]:
        rows = list(execute(*given))
        read.extend(rows)
        return rows

    monkeypatch.setattr(record_sql._issued_at_by_serial, "execute", counted)
    assert "revoked" in await opened(store, "a3")
    assert len(read) == 1


async def test_tokens_on_record_are_bounded(record: EnrolmentRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_sql, "MOST_TOKENS", 2)
    for number in range(2):
        await made(record, token_id=str(number))
    with pytest.raises(Refused, match="at most 2 are kept"):
        await made(record, token_id="3")
    later = replace(SCOPE, created_at_ms=NOW + DAY + KEPT_MS + 1)
    await made(record, later, "4")


async def test_tokens_come_in_pages(record: EnrolmentRecord) -> None:
    """The newest first, each once, also where several were made in the same millisecond."""
    for number in range(7):
        scope = replace(SCOPE, created_at_ms=NOW + number // 3)
        await made(record, scope, token_id=f"token-{number}")
    found: list[str] = []
    after = None
    while page := await record.tokens(after, 2):
        assert len(page) <= 2
        found += [one.token_id for one in page]
        after = (page[-1].scope.created_at_ms, page[-1].token_id)
    assert found == [f"token-{number}" for number in (6, 3, 4, 5, 0, 1, 2)]


async def test_rows_of_nodes_are_bounded_by_the_uses_of_tokens(
    record: EnrolmentRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 7: no operator's tokens can fill the table. Uses that are left count, those of revoked tokens
    do not; nodes that have a row are served as ever, and revoked, whatever the bound says."""
    monkeypatch.setattr(record_sql, "MAX_NODES", 10)
    monkeypatch.setattr(record_sql, "MAX_REVOKED_STRANGERS", 2)
    await made(record, replace(SCOPE, uses=6), "a")
    with pytest.raises(Refused, match="tokens have 6 uses left; with 5 more there would be over 10"):
        await made(record, replace(SCOPE, uses=5), "b")
    token = await made(record, replace(SCOPE, uses=4), "c")
    await record.revoke_token("a")
    await made(record, replace(SCOPE, uses=6), "d")
    assert reason_of(await record.issue_by_token(token, wanted("edge-1"), NOW)) is None
    for number in range(11):
        await record.revoke_node(f"stranger-{number}", NOW)
    with pytest.raises(Refused, match="12 nodes are on record, and this one never enrolled here"):
        await record.revoke_node("stranger-11", NOW)
    await record.revoke_node("edge-1", NOW)


async def test_a_database_of_before_keeps_the_newest_certificates(
    request: pytest.FixtureRequest, tmp_path: Path, databases: Databases
) -> None:
    """The migration: there may be hundreds of thousands of one node."""
    for url in (f"sqlite:///{tmp_path}/old.db", databases.empty()):
        await at_version(url, "v2")
        store: Any = PostgresStore(url) if url.startswith("postgresql") else SqliteStore(tmp_path / "old.db")
        rows = [
            {
                "node_id": node_id,
                "serial": f"{number:x}",
                "issued_at_ms": NOW + number,
                "not_before_ms": NOW,
                "not_after_ms": NOW + DAY,
                "token_id": "",
                "key_sha256": "k",
                "peer_address": "",
            }
            for node_id, count in (("edge-1", 50), ("edge-2", 3))
            for number in range(count)
        ]
        nodes = [{"node_id": f"edge-{number}", "project_id": ""} for number in (1, 2)]
        await store.write(lambda c: c.execute(insert(schema.enrolled_node), nodes))  # noqa: B023
        await store.write(lambda c: c.execute(insert(schema.node_certificate), rows))  # noqa: B023
        await store.close()
        await migrate(url, schema.SCHEMA)
        opened = await open_store(url, schema.SCHEMA)
        kept = await EnrolmentRecord(opened).certificates("", ("", ""), 100)
        await opened.close()
        of_one = {one.serial for one in kept if one.node_id == "edge-1"}
        assert of_one == {f"{number:x}" for number in range(50 - MOST_PER_NODE, 50)}
        assert len(kept) == MOST_PER_NODE + 3


async def at_version(url: str, version: str) -> None:
    """Makes a database as an earlier release left it."""
    store: Any = (
        PostgresStore(url)
        if url.startswith("postgresql")
        else SqliteStore(Path(url.removeprefix("sqlite:///")))
    )

    def work(connection: Connection) -> None:
        history = schema.SCHEMA.history
        script = ScriptDirectory(str(history), version_locations=[str(history)])
        with EnvironmentContext(
            Config(), script, fn=lambda revision, _: script._upgrade_revs(version, revision)
        ) as environment:
            environment.configure(
                connection=connection,
                target_metadata=schema.metadata,
                version_table=schema.SCHEMA.version_table,
            )
            environment.run_migrations()

    await store.write(work)
    await store.close()


async def test_a_token_of_another_hub_is_foreign(record: EnrolmentRecord, tmp_path: Path) -> None:
    other = await open_store(f"sqlite:///{tmp_path}/other.db", schema.SCHEMA)
    try:
        token = await made(EnrolmentRecord(other))
    finally:
        await other.close()
    assert reason_of(await record.issue_by_token(token, wanted(), NOW)) is RefusalReason.TOKEN_FOREIGN
    assert await record.certificates("", ("", ""), 10) == []


async def test_no_secret_of_a_token_is_in_the_database(record: EnrolmentRecord, store: WatchedStore) -> None:
    token = await made(record)
    rows = await store.read(lambda connection: connection.execute(select(schema.join_token)).all())
    assert rows
    assert not any(part in repr(rows) for part in token.split("."))


async def test_tokens_are_revoked_listed_and_forgotten_long_after_their_end(record: EnrolmentRecord) -> None:
    token = await made(record)
    revoked = await record.revoke_token("1")
    assert revoked
    assert revoked.revoked
    assert await record.revoke_token("2") is None
    assert reason_of(await record.issue_by_token(token, wanted(), NOW)) is RefusalReason.TOKEN_REVOKED
    later = SCOPE.expires_at_ms + KEPT_MS
    await made(record, replace(SCOPE, created_at_ms=later, expires_at_ms=later + DAY), "2")
    assert [kept.token_id for kept in await record.tokens(None, 100)] == ["2", "1"]
    await made(record, replace(SCOPE, created_at_ms=later + 1, expires_at_ms=later + DAY), "3")
    assert [kept.token_id for kept in await record.tokens(None, 100)] == ["3", "2"]


async def test_a_node_renews_by_its_certificate_and_expired_ones_go(record: EnrolmentRecord) -> None:
    assert reason_of(await record.issue_by_certificate("f0", wanted(), NOW)) is None
    later = replace(wanted(serial="a2"), not_before_ms=NOW + DAY, not_after_ms=NOW + 2 * DAY)
    assert reason_of(await record.issue_by_certificate("a1", later, NOW + DAY)) is None
    assert [one.serial for one in await record.certificates("", ("", ""), 10)] == ["a2"]


async def opened(store: WatchedStore, serial: str, project_id: str = "p1") -> str:
    """Why a link with this certificate gets no session; empty if it does."""
    entry = replace(opening(project_id=project_id), certificate_serial=serial)
    return (await SqlRegistry(store, Limits()).open("d1", [entry], NOW)).results[0].forbidden


async def test_a_revoked_node_opens_nothing_until_it_enrolled_anew(
    record: EnrolmentRecord, store: WatchedStore
) -> None:
    old = await made(record, replace(SCOPE, uses=9))
    assert reason_of(await record.issue_by_token(old, wanted(), NOW)) is None
    assert await opened(store, "a1") == ""
    await record.revoke_node("edge-1", NOW + 5)
    for serial in ("a1", "", "f0"):
        assert "revoked" in await opened(store, serial)
    # By its old certificate or an old token it gets no new one, even for a key that it had.
    renewed = await record.issue_by_certificate("a1", wanted(serial="a2"), NOW + 6)
    assert reason_of(renewed) is RefusalReason.NODE_REVOKED
    again = await record.issue_by_token(old, wanted(serial="a3"), NOW + 6)
    assert reason_of(again) is RefusalReason.NODE_REVOKED
    new = await made(record, replace(SCOPE, created_at_ms=NOW + 7), "2")
    # Also if the clock of this replica is behind.
    assert reason_of(await record.issue_by_token(new, wanted(serial="a4", key="k2"), NOW)) is None
    assert await opened(store, "a4") == ""
    assert "revoked" in await opened(store, "a1")
    shown = {one.serial: one.revoked for one in await record.certificates("edge", ("", ""), 10)}
    assert shown == {"a1": True, "a4": False}
    assert reason_of(await record.issue_by_certificate("a4", wanted(serial="a5", key="k2"), NOW)) is None


async def test_a_reinstated_node_has_its_certificates_back(
    record: EnrolmentRecord, store: WatchedStore
) -> None:
    await record.revoke_node("edge-1", NOW)
    assert await opened(store, "a1")
    assert await record.reinstate_node("edge-1")
    assert not await record.reinstate_node("edge-1")
    assert await opened(store, "a1") == ""


async def test_a_revocation_beside_opens_leaves_no_session(
    record: EnrolmentRecord, store: WatchedStore
) -> None:
    """Whichever comes first: the open is refused, or the eviction that follows finds its session."""
    registry = SqlRegistry(store, Limits())
    await asyncio.gather(*(opened(store, "a1") for _ in range(10)), record.revoke_node("edge-1", NOW))
    evicted = (await registry.evict("edge-1", 0, NOW)).results[0].eviction
    assert evicted is not Eviction.OTHER_EPOCH
    assert "revoked" in await opened(store, "a1")
    session = await registry.get("edge-1")
    assert session is None or session.state.name in ("DRAINING", "CLOSED")


async def test_a_node_that_enrolled_for_a_project_connects_in_no_other(
    record: EnrolmentRecord, store: WatchedStore
) -> None:
    token = await made(record, replace(SCOPE, project_id="p1"))
    assert reason_of(await record.issue_by_token(token, wanted(), NOW)) is None
    assert await opened(store, "a1", "p1") == ""
    assert "another project" in await opened(store, "a1", "p2")


async def test_certificates_are_listed_page_by_page_and_by_prefix(record: EnrolmentRecord) -> None:
    token = await made(record, replace(SCOPE, uses=9, node_pattern="*"))
    for number, node_id in enumerate(("edge-1", "edge-1", "edge-2", "gate-1")):
        refused = await record.issue_by_token(token, wanted(node_id, f"a{number}", f"k{number}"), NOW)
        assert reason_of(refused) is None
    first = await record.certificates("edge-", ("", ""), 2)
    rest = await record.certificates("edge-", (first[-1].node_id, first[-1].serial), 2)
    assert [(one.node_id, one.serial) for one in (*first, *rest)] == [
        *(("edge-1", "a0"), ("edge-1", "a1")),
        ("edge-2", "a2"),
    ]


async def test_revoked_nodes_are_listed_page_by_page_and_by_prefix(record: EnrolmentRecord) -> None:
    for number in (3, 1, 2):
        await record.revoke_node(f"edge-{number}", NOW + number)
    await record.revoke_node("gate-1", NOW)
    token = await made(record, replace(SCOPE, uses=9, created_at_ms=NOW + 7))
    assert reason_of(await record.issue_by_token(token, wanted("edge-2"), NOW + 8)) is None
    await record.reinstate_node("edge-3")
    first = await record.revoked_nodes("edge-", "", 1)
    rest = await record.revoked_nodes("edge-", first[-1].node_id, 9)
    assert [*first, *rest] == [
        RevokedNode("edge-1", NOW + 1, enrolled_since=False),
        RevokedNode("edge-2", NOW + 2, enrolled_since=True),
    ]
    assert [one.node_id for one in await record.revoked_nodes("", "", 9)] == ["edge-1", "edge-2", "gate-1"]

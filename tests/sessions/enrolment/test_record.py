"""Tokens, certificates and revocations on both engines: `services.sessions.enrolment.record_sql`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from services.runtime.store import open_store
from services.runtime.watched_store import WatchedStore
from services.sessions import schema
from services.sessions.enrolment.record_sql import KEPT_MS, EnrolmentRecord
from services.sessions.enrolment.records import Refusal, RefusalReason, TokenScope, Wanted
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


def reason_of(refusal: Refusal | None) -> RefusalReason | None:
    return refusal.reason if refusal else None


async def test_a_token_of_one_use_lets_one_node_in(record: EnrolmentRecord) -> None:
    token = await made(record)
    assert await record.issue_by_token(token, wanted(), NOW) is None
    refused = await record.issue_by_token(token, wanted("edge-2", "a2", "k2"), NOW)
    assert reason_of(refused) is RefusalReason.TOKEN_USED_UP
    (issued,) = await record.certificates("", ("", ""), 10)
    assert (issued.node_id, issued.serial, issued.token_id) == ("edge-1", "a1", "1")
    assert [token.uses_left for token in await record.tokens()] == [0]


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


async def test_a_request_whose_answer_was_lost_is_granted_again(record: EnrolmentRecord) -> None:
    token = await made(record)
    assert await record.issue_by_token(token, wanted(), NOW) is None
    assert await record.issue_by_token(token, wanted(serial="a2"), NOW) is None
    stolen = await record.issue_by_token(token, wanted(serial="a3", key="k2"), NOW)
    assert reason_of(stolen) is RefusalReason.TOKEN_USED_UP


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
    assert [kept.token_id for kept in await record.tokens()] == ["2", "1"]
    await made(record, replace(SCOPE, created_at_ms=later + 1, expires_at_ms=later + DAY), "3")
    assert [kept.token_id for kept in await record.tokens()] == ["3", "2"]


async def test_a_node_renews_by_its_certificate_and_expired_ones_go(record: EnrolmentRecord) -> None:
    assert await record.issue_by_certificate("f0", wanted(), NOW) is None
    later = replace(wanted(serial="a2"), not_before_ms=NOW + DAY, not_after_ms=NOW + 2 * DAY)
    assert await record.issue_by_certificate("a1", later, NOW + DAY) is None
    assert [one.serial for one in await record.certificates("", ("", ""), 10)] == ["a2"]


async def opened(store: WatchedStore, serial: str, project_id: str = "p1") -> str:
    """Why a link with this certificate gets no session; empty if it does."""
    entry = replace(opening(project_id=project_id), certificate_serial=serial)
    return (await SqlRegistry(store, Limits()).open("d1", [entry], NOW)).results[0].forbidden


async def test_a_revoked_node_opens_nothing_until_it_enrolled_anew(
    record: EnrolmentRecord, store: WatchedStore
) -> None:
    old = await made(record, replace(SCOPE, uses=9))
    assert await record.issue_by_token(old, wanted(), NOW) is None
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
    assert await record.issue_by_token(new, wanted(serial="a4", key="k2"), NOW) is None
    assert await opened(store, "a4") == ""
    assert "revoked" in await opened(store, "a1")
    shown = {one.serial: one.revoked for one in await record.certificates("edge", ("", ""), 10)}
    assert shown == {"a1": True, "a4": False}
    assert await record.issue_by_certificate("a4", wanted(serial="a5", key="k2"), NOW) is None


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
    assert await record.issue_by_token(token, wanted(), NOW) is None
    assert await opened(store, "a1", "p1") == ""
    assert "another project" in await opened(store, "a1", "p2")


async def test_certificates_are_listed_page_by_page_and_by_prefix(record: EnrolmentRecord) -> None:
    token = await made(record, replace(SCOPE, uses=9, node_pattern="*"))
    for number, node_id in enumerate(("edge-1", "edge-1", "edge-2", "gate-1")):
        refused = await record.issue_by_token(token, wanted(node_id, f"a{number}", f"k{number}"), NOW)
        assert refused is None
    first = await record.certificates("edge-", ("", ""), 2)
    rest = await record.certificates("edge-", (first[-1].node_id, first[-1].serial), 2)
    assert [(one.node_id, one.serial) for one in (*first, *rest)] == [
        *(("edge-1", "a0"), ("edge-1", "a1")),
        ("edge-2", "a2"),
    ]

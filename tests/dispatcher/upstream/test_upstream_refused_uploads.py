"""Uploads that the database refuses: each fails alone, is told, and holds nobody up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from services.dispatcher.outbox.schema import SCHEMA
from tests.support.postgres import Databases
from tests.support.upstream import Hub, open_hub, upload

TEXT = "index row size 3008 exceeds maximum"


@pytest.fixture(params=["sqlite", "postgresql"], autouse=True)
async def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs on both engines."""
    if request.param == "postgresql":
        databases: Databases = request.getfixturevalue("databases")
        url = await databases.fresh(SCHEMA)
        monkeypatch.setattr("tests.support.upstream.database_url", lambda folder: url)


@asynccontextmanager
async def refusing(hub: Hub, condition: str) -> AsyncIterator[None]:
    """The database refuses rows as it does one that is too large for an index."""

    def begin(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(
                f"CREATE TRIGGER refuse BEFORE INSERT ON upload WHEN {condition} "
                f"BEGIN SELECT RAISE(ABORT, '{TEXT}'); END"
            )
            return
        connection.exec_driver_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"RAISE EXCEPTION '{TEXT}' USING ERRCODE = 'program_limit_exceeded'; END $$"
        )
        connection.exec_driver_sql(
            f"CREATE TRIGGER refuse BEFORE INSERT ON upload FOR EACH ROW WHEN ({condition}) "
            "EXECUTE FUNCTION refuse()"
        )

    def end(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("DROP TRIGGER refuse")
        else:
            connection.exec_driver_sql("DROP FUNCTION refuse CASCADE")

    await hub.store.write(begin)
    try:
        yield
    finally:
        await hub.store.write(end)


async def stored(hub: Hub) -> dict[str, list[str]]:
    """Message ids on disk, by node, in order."""
    table = hub.table
    query = select(table.c.node_id, table.c.message_id).order_by(table.c.node_id, table.c.epoch, table.c.n)
    found: dict[str, list[str]] = {}
    for node_id, message_id in await hub.store.read(lambda connection: list(connection.execute(query))):
        found.setdefault(node_id, []).append(message_id)
    return found


async def test_a_refused_upload_fails_alone_and_all_others_are_stored(tmp_path: Path) -> None:
    """C44, C46: those before and behind it of its own node too; its link neither pauses nor closes."""
    async with open_hub(tmp_path) as hub, refusing(hub, "NEW.message_id = 'upload-3'"):
        for number in range(6):
            hub.receive("edge-1", 5, upload(number, sync=True), frame=number)
            hub.receive("edge-2", 5, upload(number + 10, sync=True), frame=number)
        await hub.edge.until(lambda: len(hub.edge.answers) == 12)
        told = {message.parent_id: message.content for _, _, message in hub.edge.answers}
        assert b"refuses" in told.pop("upload-3")
        assert set(told.values()) == {b'"OK"'}
        assert await stored(hub) == {
            "edge-1": [f"upload-{number}" for number in (0, 1, 2, 4, 5)],
            "edge-2": [f"upload-{number}" for number in range(10, 16)],
        }
        assert sorted(frame for node, _, frame in hub.edge.safe if node == "edge-1") == list(range(6))
        assert not hub.edge.pauses
        assert not hub.edge.closes
        assert hub.metric("dropped_total", reason="stored_refused") == 1
        assert hub.metric("store_failures_total") == 0
        assert hub.metric("uploads_rows") == 11
        async with hub.subscriber("router") as cloud:
            got = await cloud.take(11)
        assert [one.message.id for one in got if one.node_id == "edge-1"] == [
            f"upload-{number}" for number in (0, 1, 2, 4, 5)
        ]


async def test_one_that_asks_for_no_answer_is_given_up_and_its_link_goes_on(tmp_path: Path) -> None:
    """C44, C46: it is counted, and the next ones of the link come to subscribers."""
    async with (
        open_hub(tmp_path) as hub,
        refusing(hub, "NEW.node_id = 'edge-1'"),
        hub.subscriber("router") as cloud,
    ):
        for number in range(4):
            hub.receive("edge-1", 5, upload(number), frame=number)
        hub.receive("edge-2", 5, upload(9))
        assert [one.node_id for one in await cloud.take(1)] == ["edge-2"]
        await hub.edge.until(lambda: len(hub.edge.safe) == 5)
        assert not hub.edge.answers
        assert not hub.edge.pauses
        assert not hub.edge.closes
        assert hub.metric("dropped_total", reason="stored_refused") == 4
        await hub.until(lambda: hub.metric("uploads_settled_total") == 1)
        await hub.upstream.uploads.flush()
        assert hub.metric("uploads_rows") == 0

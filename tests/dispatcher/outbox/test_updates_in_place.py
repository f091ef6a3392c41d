"""What a message does to its row on PostgreSQL: no index is written, and no page but the row's own."""

import asyncio

from sqlalchemy import text

from services.dispatcher.outbox.quotas import Quotas
from services.dispatcher.outbox.records import Claim
from services.dispatcher.outbox.schema import SCHEMA
from services.dispatcher.outbox.sql import SqlOutbox
from services.runtime.store import open_store
from tests.support.outbox import NODE, NOW_MS, accept, publication, settle
from tests.support.postgres import Databases

ROUNDS, OBJECTS = 20, 50


async def test_updates_of_a_delivery_stay_in_its_page(databases: Databases) -> None:
    """A new version of every object and its acknowledgement, again and again, with bodies of 1 KiB."""
    outbox = SqlOutbox(await open_store(await databases.fresh(SCHEMA), SCHEMA), Quotas())
    await outbox.open()
    await outbox.commit([Claim(NODE, 1, NOW_MS)])
    for version in range(1, ROUNDS + 1):
        accepted = await outbox.commit(
            [accept(publication(version, uid=f"u{n}", content=b"x" * 1024)) for n in range(OBJECTS)]
        )
        await outbox.commit([settle(one, 1) for one in accepted])
    counted = text(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables, pg_stat_force_next_flush()"
        " WHERE relname = 'delivery'"
    )
    updates = in_place = 0
    async with asyncio.timeout(10):
        while updates < 2 * ROUNDS * OBJECTS - OBJECTS:  # counted with a delay
            updates, in_place = await outbox.store.read(lambda c: tuple(c.execute(counted).one()))
    await outbox.store.close()
    assert in_place > 0.9 * updates

"""How old the oldest pending message is: `services.dispatcher.oldest_pending`, and what the outbox tells."""

from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dispatcher.housekeeping import Housekeeping
from services.dispatcher.oldest_pending import ALL, CONNECTED, OldestPending
from services.dispatcher.outbox import ages
from services.dispatcher.outbox.quotas import Quotas
from services.dispatcher.outbox.records import Accepted, Claim, Park, Result
from services.dispatcher.outbox.schema import SCHEMA
from services.dispatcher.outbox.sql import SqlOutbox
from services.runtime.store import open_store
from tests.support.dispatcher import running_delivery_half
from tests.support.outbox import NOW_MS, accept, publication, settle
from tests.support.postgres import Databases

_nodes = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 10**6), max_size=12)


@settings(deadline=None)
@given(_nodes, _nodes, st.integers(1, 5))
def test_a_walk_finds_the_oldest_however_it_is_cut(
    pending: dict[str, int], opened: dict[str, int], step: int
) -> None:
    """And nothing is left of it in the next one."""
    oldest = OldestPending()
    names = sorted(pending)
    for begin in range(0, max(1, len(names)), step):
        assert oldest.after == (names[begin - 1] if begin else "")
        part = names[begin : begin + step]
        is_last = begin + step >= len(names)
        oldest.found({name: pending[name] for name in part}, opened, None if is_last else part[-1])
    now_ms = 2 * 10**6
    here = {name: max(at, opened[name]) for name, at in pending.items() if name in opened}
    for nodes, among in ((ALL, pending), (CONNECTED, here)):
        wanted = (now_ms - min(among.values())) / 1000 if among else 0.0
        assert oldest.seconds(nodes, now_ms) == wanted
    oldest.found({}, opened, None)
    assert oldest.seconds(ALL, now_ms) == oldest.seconds(CONNECTED, now_ms) == 0.0


def test_a_walk_counts_once_it_is_through_and_goes_on_growing() -> None:
    oldest = OldestPending()
    oldest.found({"a": 1_000}, {"a": 0}, None)
    assert oldest.seconds(CONNECTED, 4_000) == 3.0
    oldest.found({"a": 3_000}, {"a": 0}, "a")
    assert oldest.seconds(CONNECTED, 5_000) == 4.0
    oldest.found({"b": 3_500}, {"a": 0}, None)
    assert (oldest.seconds(ALL, 5_000), oldest.seconds(CONNECTED, 5_000)) == (2.0, 2.0)
    assert oldest.seconds(ALL, 1_000) == 0.0, "a clock that was set back"


def test_what_waited_for_a_node_that_was_away_begins_anew_when_it_is_back() -> None:
    """A day of absence is no delivery that stalls; a message newer than the session counts from its
    acceptance."""
    day_ms = 86_400_000
    oldest = OldestPending()
    oldest.found({"back": 0, "there": day_ms - 5_000}, {"back": day_ms - 2_000, "there": 1_000}, None)
    assert oldest.seconds(ALL, day_ms) == 86_400.0
    assert oldest.seconds(CONNECTED, day_ms) == 5.0
    oldest.found({"back": 0}, {"back": day_ms - 2_000}, None)
    assert oldest.seconds(CONNECTED, day_ms) == 2.0
    assert oldest.seconds(CONNECTED, day_ms + 3_600_000) == 3602.0, "and it does not move"


class Waiting:
    """An outbox whose nodes wait since given instants."""

    def __init__(self, **accepted_at_ms: int) -> None:
        self._ages = ages.Ages(accepted_at_ms, None)

    async def first_pending(self, _: str) -> ages.Ages:
        return self._ages


async def test_the_walk_asks_the_sessions_when_they_were_opened() -> None:
    """A node that was away for a day and came back a moment ago, beside one that is away still."""
    async with running_delivery_half() as half:
        accepted = half.clock.wall_ms()
        parts: dict[str, Any] = {one.name: None for one in fields(Housekeeping) if one.init}
        parts |= {"outbox": Waiting(back=accepted, away=accepted), "oldest": OldestPending()}
        keeping = Housekeeping(**parts | {"delivery": half.delivery, "clock": half.clock})
        half.clock.advance(86_400.0)
        await half.connect("back")
        half.clock.advance(7.0)
        await keeping._walk()
        assert (keeping._oldest_seconds(ALL), keeping._oldest_seconds(CONNECTED)) == (86_407.0, 7.0)
        half.clock.advance(3600.0)
        assert keeping._oldest_seconds(CONNECTED) == 3607.0


@pytest.fixture(params=["sqlite", "postgresql"])
async def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlOutbox]:
    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    if request.param == "postgresql":
        databases: Databases = request.getfixturevalue("databases")
        url = await databases.fresh(SCHEMA)
    made = SqlOutbox(await open_store(url, SCHEMA), Quotas())
    await made.open()
    yield made
    await made.store.close()


async def publish(outbox: SqlOutbox, node_id: str, uid: str, at_ms: int) -> Result | Exception:
    (result,) = await outbox.commit([accept(publication(uid=uid), node_id, at_ms)])
    return result


async def test_of_each_node_the_first_pending_message_counts(outbox: SqlOutbox) -> None:
    """None that is acknowledged or parked, and no node without any."""
    await outbox.commit([Claim(node, 1, NOW_MS) for node in ("a", "b", "c", "d")])
    settled = await publish(outbox, "a", "u1", NOW_MS)
    await publish(outbox, "a", "u2", NOW_MS + 5)
    await publish(outbox, "a", "u3", NOW_MS + 9)
    parked = await publish(outbox, "b", "u1", NOW_MS + 1)
    await publish(outbox, "b", "u2", NOW_MS + 7)
    alone = await publish(outbox, "c", "u1", NOW_MS + 2)
    done = await publish(outbox, "d", "u1", NOW_MS + 3)
    assert isinstance(parked, Accepted)
    assert isinstance(alone, Accepted)
    await outbox.commit(
        [
            settle(settled, 1),
            settle(done, 1),
            *(
                Park(one.row.node_id, 1, one.row.key, one.row.seq, one.row.message_id, "refused", NOW_MS)
                for one in (parked, alone)
            ),
        ]
    )
    found = await outbox.first_pending("")
    assert found == ages.Ages({"a": NOW_MS + 5, "b": NOW_MS + 7}, None)
    assert (await outbox.first_pending("a")).accepted_at_ms == {"b": NOW_MS + 7}


async def test_a_step_is_bounded_and_the_next_one_goes_on(
    outbox: SqlOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By nodes and by their objects; a node with more objects than that has a step of its own."""
    names = [f"n{number}" for number in range(5)]
    for number, name in enumerate(names):
        for uid in ("u1", "u2", "u3"):
            await publish(outbox, name, uid, NOW_MS + number)

    async def steps() -> list[list[str]]:
        found: list[list[str]] = []
        after: str | None = ""
        while after is not None:
            step = await outbox.first_pending(after)
            found.append(sorted(step.accepted_at_ms))
            after = step.after
        return found

    assert await steps() == [names]
    # Those that nothing waits for are looked at as well.
    await outbox.commit([Claim(f"m{number}", 1, NOW_MS) for number in range(4)])
    monkeypatch.setattr(ages, "NODES_PER_STEP", 3)
    assert await steps() == [[], names[:2], names[2:], []]
    monkeypatch.setattr(ages, "NODES_PER_STEP", 100)
    for most, wanted in ((6, [names[:2], names[2:4], names[4:]]), (2, [[name] for name in names])):
        monkeypatch.setattr(ages, "MAX_OBJECTS_PER_STEP", most)
        assert await steps() == wanted

"""Several replicas of sessions over one database: `services.sessions.registry_sql` on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import pytest

from services.runtime.errors import StoreBusy
from services.runtime.store import open_store
from services.sessions.lifecycle import LIVE, Reason, State
from services.sessions.limits import Limits, Scope
from services.sessions.records import Ending, Filter, Opening
from services.sessions.registry import Registry
from services.sessions.registry_sql import SqlRegistry
from services.sessions.schema import SCHEMA
from tests.support.postgres import Databases
from tests.support.sessions import opening, recounted

T = TypeVar("T")
NOW = 1_700_000_000_000
LIMITS = Limits(per_connector=12, per_project=25, total=40)
EVERYTHING = Filter(states=frozenset(State))


@pytest.fixture
async def replicas(databases: Databases) -> AsyncIterator[list[SqlRegistry]]:
    """Three replicas' registries."""
    url = await databases.fresh(SCHEMA)
    stores = [await open_store(url, SCHEMA) for _ in range(3)]
    yield [SqlRegistry(store, LIMITS) for store in stores]
    for store in stores:
        await store.close()


async def exact_counts(registry: Registry) -> None:
    usage = await registry.usage(most=1000)
    assert {place: nodes for place, nodes in usage.counts.items() if nodes} == recounted(
        await registry.page(EVERYTHING, "", 10_000)
    )


@asynccontextmanager
async def watched(registry: Registry) -> AsyncIterator[dict[Scope, int]]:
    """Looks at the counters again and again during the body; the highest of each scope."""
    highest = dict.fromkeys(Scope, 0)

    async def look() -> None:
        while True:
            for (scope, _), nodes in (await registry.usage(most=1000)).counts.items():
                highest[scope] = max(highest[scope], nodes)

    looking = asyncio.create_task(look())
    try:
        yield highest
    finally:
        looking.cancel()
        await asyncio.wait([looking])


@pytest.mark.parametrize("per_call", [1, 7], ids=["one by one", "in batches"])
async def test_of_many_simultaneous_opens_exactly_as_many_win_as_there_is_room(
    replicas: list[SqlRegistry], per_call: int
) -> None:
    """C7: over all replicas; no limit is passed, not for an instant."""
    nodes = [f"edge-{n:03}" for n in range(140)]
    calls = [nodes[first : first + per_call] for first in range(0, len(nodes), per_call)]

    def entries(number: int, call: list[str]) -> list[Opening]:
        return [opening(node_id, f"p{int(node_id[-3:]) % 2}", f"c{number % 6}") for node_id in call]

    async with watched(replicas[2]) as highest:
        committed = await asyncio.gather(
            *(replicas[n % 3].open(f"d{n % 5}", entries(n, call), NOW) for n, call in enumerate(calls))
        )
    results = [result for one in committed for result in one.results]
    assert sum(1 for result in results if result.epoch) == LIMITS.total
    refused = {result.full[0] for result in results if not result.epoch and result.full}
    assert Scope.TOTAL in refused
    for scope in Scope:
        assert 0 < highest[scope] <= LIMITS.general(scope)
    await exact_counts(replicas[0])


async def test_a_node_that_opens_everywhere_at_once_has_one_session(replicas: list[SqlRegistry]) -> None:
    """C1, invariant 4: every open gets an epoch of its own, the highest lives, the others are superseded."""
    committed = await asyncio.gather(
        *(replicas[n % 3].open(f"d{n % 3}", [opening(link=n)], NOW) for n in range(12))
    )
    epochs = [one.results[0].epoch for one in committed]
    assert len(set(epochs)) == 12
    session = await replicas[0].get("edge-1")
    assert session
    assert (session.epoch, session.live) == (max(epochs), True)
    assert (await replicas[0].usage(most=1000)).counts[Scope.TOTAL, ""] == 1
    await exact_counts(replicas[0])


async def asked_until_free(make: Callable[[], Awaitable[T]]) -> T:
    """As a dispatcher does: what finds its rows locked for too long (a busy machine) is asked again."""
    while True:
        try:
            return await make()
        except StoreBusy:
            continue


@pytest.mark.no_cover
async def test_opens_and_closes_from_everywhere_leave_exact_counts(replicas: list[SqlRegistry]) -> None:
    """C7: a node that leaves makes room at once; nothing is counted twice or forgotten."""

    async def come_and_go(number: int) -> int:
        registry, dispatcher_id = replicas[number % 3], f"d{number % 4}"
        refused = 0
        for turn in range(6):
            node_id = f"edge-{(number * 7 + turn) % 50:02}"
            wanted = [opening(node_id, f"p{turn % 2}", f"c{(number + turn) % 5}")]
            opened = await asked_until_free(partial(registry.open, dispatcher_id, wanted, NOW))
            result = opened.results[0]
            if not result.epoch:
                refused += 1
                continue
            ending = [Ending(node_id, result.epoch, Reason.EDGE_CLOSED)]
            await asked_until_free(partial(registry.close, dispatcher_id, ending, NOW))
        return refused

    async with watched(replicas[0]) as highest:
        await asyncio.gather(*(come_and_go(number) for number in range(24)))
    for scope in Scope:
        assert highest[scope] <= LIMITS.general(scope)
    await exact_counts(replicas[1])
    sessions = await replicas[2].page(Filter(states=frozenset(LIVE)), "", 1000)
    assert sessions == []

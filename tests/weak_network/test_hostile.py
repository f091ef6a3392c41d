"""Invariant 7: what hostile parties do is no affair of the others'. One hub, one fleet that behaves well;
beside it one kind of hostile act after the other, without a pause."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from chaos.hostile.acts import Act, ActKind, acts
from chaos.hostile.edges import HOSTILE_NODES
from chaos.hostile.party import Players, faults_of, players_at
from tests.lab.cast import LOUD_SECONDS, NOISE_MS, Cast
from tests.lab.scenario import OTHERS
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600), pytest.mark.alone]

LEAST = {ActKind.POISON: 1}
"""How many acts of a kind must have been played whole; of all others three."""
SEED = 1


async def test_nobody_is_disturbed_by_hostile_parties(stage: Stage) -> None:
    """C41, C42, C46, C47, C49, C50, invariants 1 to 10: 20 edges under load, alone and beside others."""
    flags = {"dispatcher": ["--unknown-node-seconds", "5"]}
    async with stage.scenario(
        "beside hostile parties", {OTHERS: 20}, misbehaving=HOSTILE_NODES, hub_flags=flags
    ) as scenario:
        await scenario.start()
        cast = Cast(scenario)
        await cast.alone("20 edges alone, before hostile parties")
        bystanders = scenario.fleet(OTHERS).node_ids
        players = players_at(scenario.hub, scenario.certificates, bystanders, SEED, sources=[""])
        for kind in ActKind:
            async with cast.beside(f"beside: {kind}", [], NOISE_MS) as act:
                async with _played(players, kind) as played:
                    await scenario.load_for(LOUD_SECONDS)
                act.tell(f"{len(played)} acts")
                assert len(played) >= LEAST.get(kind, 3)
        await cast.alone("20 edges alone, after hostile parties")
    cast.compare()
    assert cast.failures == []


@asynccontextmanager
async def _played(players: Players, kind: ActKind) -> AsyncIterator[list[Act]]:
    """One act after the other while the block lasts; the last one is played to its end."""
    done: list[Act] = []
    over = asyncio.Event()

    async def play() -> None:
        for act in acts(SEED, kind):
            try:
                faults = faults_of(await players.play(act))
            except grpc.aio.AioRpcError as error:
                faults = [f"{error.code().name}: {error.details()}"]
            assert not faults, f"{act}: {faults}"
            done.append(act)
            if over.is_set():
                return

    playing = asyncio.create_task(play(), name=f"hostile: {kind}")
    try:
        yield done
    finally:
        over.set()
        await playing

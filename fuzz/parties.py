"""Hostile parties of all kinds at a running hub, one after the other in any order and size."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from chaos.hostile.acts import Act, ActKind
from chaos.hostile.edges import HostileEdges
from chaos.hostile.party import Players, faults_of
from chaos.hostile.programs import Programs
from chaos.hostile.strangers import Strangers
from fuzz.hub import GOOD_NODE, FuzzedHub, fuzzed_hub
from fuzz.target import Check

_MAX_ACTS = 4
_MAX_SIZE = 30


@st.composite
def plays(draw: Callable[[SearchStrategy[Any]], Any]) -> tuple[Act, ...]:
    """Some acts, which are played at the same time; each of a kind of its own."""
    kinds = draw(st.lists(st.sampled_from(ActKind), min_size=1, max_size=_MAX_ACTS, unique=True))
    return tuple(
        Act(
            kind,
            draw(st.integers(1, 2**40)),
            draw(st.integers(1, _MAX_SIZE)),
            draw(st.sampled_from([0.0, 0.05, 0.3])),
            0.0,
        )
        for kind in kinds
    )


def _players(hub: FuzzedHub) -> Players:
    running = hub.hub
    doors = [("127.0.0.1", running.peers.port)]
    for service in ("sessions", "dispatcher", "connector"):
        host, _, port = running.address(service).rpartition(":")
        doors.append((host, int(port)))
    programs = Programs([running.address("dispatcher")], 0)
    servers = [f"wss://localhost:{running.peers.port}"]
    return Players(
        Strangers(doors, 0), programs, HostileEdges(servers, running.peers.context, programs, 0), [GOOD_NODE]
    )


async def _play(players: Players, acts: tuple[Act, ...]) -> list[str]:
    """What is wrong with what came of each; that a dispatcher which lives does not answer is a fault too."""
    faults: list[str] = []
    for played in await asyncio.gather(*map(players.play, acts), return_exceptions=True):
        if isinstance(played, grpc.aio.AioRpcError):
            faults.append(f"{played.code().name}: {played.details()}")
        elif isinstance(played, BaseException):
            raise played
        else:
            faults += faults_of(played)
    return faults


@contextmanager
def parties_checked() -> Iterator[Check[tuple[Act, ...]]]:
    """The check of some acts: the edge that behaves well gets its message in time while they are played; see
    `fuzzed_hub` for what holds at the end."""
    with fuzzed_hub() as hub:
        players = _players(hub)

        async def one(acts: tuple[Act, ...]) -> list[str]:
            playing = asyncio.create_task(_play(players, acts), name="hostile parties")
            try:
                await hub.exchange()
            finally:
                faults = await playing
            return faults

        def check(acts: tuple[Act, ...]) -> None:
            faults = hub.wait(one(acts))
            assert not faults, f"{acts}: {faults}"
            hub.nothing_raised()

        yield check

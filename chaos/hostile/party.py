"""All hostile parties of a run: one kind of act after the other is played, each kind on its own."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

from chaos.clock import RunClock
from chaos.history import ActDone
from chaos.hostile.acts import Act, ActKind, acts
from chaos.hostile.edges import HOSTILE_NODES, HostileEdges, contexts_from
from chaos.hostile.programs import Programs
from chaos.hostile.strangers import LOOPBACK, Strangers
from demo.hub import Hub

Played: TypeAlias = bool | str | list[str]
"""Whether it got through to the hub; or what is wrong with what the hub made of it."""
_GONE_SECONDS = 60.0
_AGAIN_SECONDS = 0.5


def doors_of(hub: Hub) -> list[tuple[str, int]]:
    """Every TCP port that a hub listens on."""
    found = []
    for ports in hub.ports:
        numbers = [ports.edges, ports.edges, ports.edges]  # where most strangers come
        numbers += [ports.sessions, ports.dispatcher, ports.connector]
        numbers += [ports.sessions_metrics, ports.dispatcher_metrics, ports.connector_metrics]
        if hub.enrolments:
            numbers += [ports.enrolment]
        found += [(hub.host, number) for number in numbers]
    return found


@dataclass(frozen=True, slots=True)
class Players:
    """Who plays the acts. `bystanders` are nodes that others publish to and that nothing of it may reach."""

    strangers: Strangers
    programs: Programs
    edges: HostileEdges
    bystanders: Sequence[str]

    async def play(self, act: Act) -> Played:
        """Raises AioRpcError or TimeoutError where nobody is there."""
        ways: dict[ActKind, Callable[[Act], Awaitable[Played]]] = {
            ActKind.SILENT: self.strangers.stay_silent,
            ActKind.POISON: self.edges.refuse_poison,
            ActKind.MUTE: self.programs.subscribe_silently,
            ActKind.FLAPPING: self.edges.flap,
            ActKind.UPLOADS: self.edges.upload,
            ActKind.UNKNOWN: self.programs.address_nobody,
            ActKind.REFUSED: self._publish_wrongly,
        }
        return await ways[act.kind](act)

    async def _publish_wrongly(self, act: Act) -> Played:
        return await self.programs.publish_wrongly(act, self.bystanders)


def players_at(
    hub: Hub,
    certificates: Path,
    bystanders: Sequence[str],
    seed: int,
    sources: Sequence[str] = LOOPBACK,
) -> Players:
    """Those of a running hub; `certificates` has files of HOSTILE_NODES."""
    programs = Programs([one.address for one in hub.dispatchers], seed, hub.security)
    return Players(
        Strangers(doors_of(hub), seed, sources),
        programs,
        HostileEdges(hub.server.split(","), contexts_from(certificates), programs, seed),
        bystanders,
    )


def faults_of(played: Played) -> list[str]:
    """What is wrong with what the hub made of an act."""
    if isinstance(played, str):
        return [played] if played else []
    return [] if isinstance(played, bool) else played


class HostileParty:
    """`run` must be awaited by the owner, and plays until `stop`. `done` is what was done."""

    def __init__(
        self, hub: Hub, certificates: Path, bystanders: Sequence[str], seed: int, clock: RunClock
    ) -> None:
        self._players = players_at(hub, certificates, bystanders, seed)
        self._seed = seed
        self._clock = clock
        self._stopping = asyncio.Event()
        self.done: list[ActDone] = []

    @property
    def played(self) -> int:
        """Acts that got through to the hub."""
        return sum(one.through for one in self.done)

    def stop(self) -> None:
        """What is at work is played to its end."""
        self._stopping.set()

    async def run(self) -> None:
        """Returns when all have stopped."""
        async with asyncio.TaskGroup() as group:
            for kind in ActKind:
                group.create_task(self._play(kind), name=f"hostile: {kind}")

    async def _play(self, kind: ActKind) -> None:
        for act in acts(self._seed, kind):
            if await self._stopped_within(act.pause_seconds):
                return
            at, began = self._clock.now(), time.monotonic()
            try:
                played = await self._players.play(act)
            except (grpc.aio.AioRpcError, TimeoutError):
                played = False  # nobody was there to be harmed
            took = time.monotonic() - began
            self.done.append(
                ActDone(kind.value, at, took, through=played is not False, wrong=faults_of(played))
            )

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False

    async def clear_away(self) -> list[str]:
        """As `cleared_away`."""
        return await cleared_away(self._players.programs)


async def cleared_away(programs: Programs) -> list[str]:
    """Deletes the nodes of hostile edges; a sentence for each that is left."""
    left = []
    for node_id in HOSTILE_NODES:
        try:
            async with asyncio.timeout(_GONE_SECONDS):
                while not await _deleted(programs, node_id):  # noqa: ASYNC110 - told by nobody
                    await asyncio.sleep(_AGAIN_SECONDS)
        except TimeoutError:
            left.append(f"node {node_id} could not be deleted within {_GONE_SECONDS:g} s")
    return left


async def _deleted(programs: Programs, node_id: str) -> bool:
    try:
        return await programs.delete_node(node_id)
    except grpc.aio.AioRpcError:
        return False

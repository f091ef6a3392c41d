"""What the other dispatchers know of nodes, asked for an operator who reaches this one alone.

with_looks(...)   their answers laid over what this dispatcher says of nodes; pure
Looked            their answers
Looks             asks them, each with a deadline
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from cloudhub.v1.dispatcher_pb2 import NodeDelivery, SilentDispatcher
from cloudhub.v1.peer_pb2 import (
    LookAtNodesRequest,
    LookAtNodesResponse,
    NodeLook,
    ObjectLook,
    ObjectOfNode,
)
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.peers.peer import CALL_SECONDS, Peer
from services.dispatcher.standing import Standing, newer
from services.runtime.deadline import half_of
from services.runtime.errors import Unavailable

MAX_NODES = 1000
"""In one question: a page."""
MAX_OBJECTS = 1000
"""Likewise."""
SPARED_SECONDS = 10.0
"""For so long one that was silent for SLOW_SECONDS is not asked again: a table of many pages waits for it
once."""
SLOW_SECONDS = 1.0
_OLDER = "it is of an older release, which does not tell of objects"
MAX_PEERS_ASKED = 64
"""By one call; further ones are named as not asked."""


def with_looks(nodes: Iterable[NodeDelivery], looks: Iterable[NodeLook]) -> None:
    """Changes `nodes` to what all dispatchers together know.

    What is in flight, only the dispatcher knows that holds the session; of two that say so, while a session
    moves, the higher epoch is right. What is noted, the one knows that held it then.
    """
    known = {node.node_id: node for node in nodes}
    for look in looks:
        node = known.get(look.node_id)
        if node is None:
            continue
        if look.connected and (not node.connected or look.epoch > node.epoch):
            node.connected, node.epoch, node.in_flight = True, look.epoch, look.in_flight
            node.last_note = look.last_note or node.last_note
        else:
            node.last_note = node.last_note or look.last_note


ObjectOf = tuple[str, str]
"""Node id and key of an object."""


class Looked(NamedTuple):
    """What the others answered."""

    nodes: Sequence[NodeLook] = ()
    standings: Mapping[ObjectOf, Standing] = MappingProxyType({})
    """Of those objects whose node has a session with one of them."""
    silent: Sequence[SilentDispatcher] = ()
    """Those that did not say."""


def _standings(looks: Iterable[ObjectLook]) -> dict[ObjectOf, Standing]:
    found: dict[ObjectOf, Standing] = {}
    for look in looks:
        one = Standing(look.epoch, look.in_flight, look.blocked_by, look.doubtful_links)
        name = (look.node_id, look.object_key)
        found[name] = newer(found.get(name), one)
    return found


def _silent(who: DispatcherPeer, reason: str) -> SilentDispatcher:
    return SilentDispatcher(
        dispatcher_id=who.dispatcher_id, name=who.name, address=who.address, reason=reason
    )


class Looks:
    """Asks `peers` as they are at the moment; `refused` are those that may not be dialled, by id.

    The role of whoever asks was checked where they asked; the others see a service of the hub.
    """

    def __init__(
        self,
        peers: Iterable[Peer],
        metrics: PeerMetrics,
        refused: Callable[[], Mapping[str, DispatcherPeer]] = dict,
    ) -> None:
        self._peers = peers
        self._metrics = metrics
        self._refused = refused
        self._spared: dict[str, tuple[float, str]] = {}
        """By id of a dispatcher that was silent: until when it is not asked, and what is told instead."""

    async def at(
        self, seconds_left: float | None, node_ids: Sequence[str] = (), objects: Sequence[ObjectOf] = ()
    ) -> Looked:
        """What the others know of at most MAX_NODES nodes and MAX_OBJECTS objects. `seconds_left` until
        whoever asked gives up."""
        if not node_ids and not objects:
            return Looked()
        peers = sorted(self._peers, key=lambda peer: peer.who.dispatcher_id)
        asked, others = peers[:MAX_PEERS_ASKED], peers[MAX_PEERS_ASKED:]
        seconds = half_of(seconds_left, CALL_SECONDS)
        request = LookAtNodesRequest(
            node_ids=node_ids[:MAX_NODES],
            objects=[ObjectOfNode(node_id=node_id, object_key=key) for node_id, key in objects[:MAX_OBJECTS]],
        )

        clock = asyncio.get_running_loop().time
        now = clock()
        self._spared = {name: one for name, one in self._spared.items() if one[0] > now}

        async def answer(peer: Peer) -> LookAtNodesResponse | SilentDispatcher:
            if spared := self._spared.get(peer.who.dispatcher_id):
                return _silent(peer.who, spared[1])
            try:
                return await peer.look(request, seconds)
            except Unavailable as error:
                if clock() - now >= SLOW_SECONDS:
                    self._spared[peer.who.dispatcher_id] = (clock() + SPARED_SECONDS, error.detail)
                return _silent(peer.who, error.detail)

        answers = await asyncio.gather(*map(answer, asked))
        answered = [one for one in answers if isinstance(one, LookAtNodesResponse)]
        silent = [one for one in answers if isinstance(one, SilentDispatcher)]
        not_asked = [
            *(_silent(peer.who, f"one call asks {MAX_PEERS_ASKED} dispatchers at most") for peer in others),
            *(_silent(who, "its address may not be dialled") for who in self._refused().values()),
        ]
        older = [
            _silent(peer.who, _OLDER)
            for peer, one in zip(asked, answers, strict=True)
            if objects and isinstance(one, LookAtNodesResponse) and not one.looked_at_objects
        ]
        self._metrics.looks.labels("answered").inc(len(answered))
        self._metrics.looks.labels("silent").inc(len(silent))
        self._metrics.looks.labels("not_asked").inc(len(not_asked))
        return Looked(
            [look for one in answered for look in one.nodes],
            _standings(look for one in answered for look in one.objects),
            silent + older + not_asked,
        )

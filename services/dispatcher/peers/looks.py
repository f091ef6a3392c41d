"""What the other dispatchers know of nodes, asked for an operator who reaches this one alone.

with_looks(...)   their answers laid over what this dispatcher says of nodes; pure
Looks             asks them, each with a deadline
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from cloudhub.v1.dispatcher_pb2 import NodeDelivery, SilentDispatcher
from cloudhub.v1.peer_pb2 import LookAtNodesRequest, LookAtNodesResponse, NodeLook
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.peers.peer import CALL_SECONDS, Peer
from services.runtime.deadline import half_of
from services.runtime.errors import Unavailable

MAX_NODES = 1000
"""In one question: a page."""
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

    async def at(
        self, node_ids: Sequence[str], seconds_left: float | None
    ) -> tuple[list[NodeLook], list[SilentDispatcher]]:
        """What the others know of at most MAX_NODES nodes, and those that did not say. `seconds_left` until
        whoever asked gives up."""
        peers = sorted(self._peers, key=lambda peer: peer.who.dispatcher_id)
        asked, others = peers[:MAX_PEERS_ASKED], peers[MAX_PEERS_ASKED:]
        seconds = half_of(seconds_left, CALL_SECONDS)
        request = LookAtNodesRequest(node_ids=node_ids[:MAX_NODES])

        async def answer(peer: Peer) -> LookAtNodesResponse | SilentDispatcher:
            try:
                return await peer.look(request, seconds)
            except Unavailable as error:
                return _silent(peer.who, error.detail)

        answers = await asyncio.gather(*map(answer, asked))
        looks = [look for one in answers if isinstance(one, LookAtNodesResponse) for look in one.nodes]
        silent = [one for one in answers if isinstance(one, SilentDispatcher)]
        not_asked = [
            *(_silent(peer.who, f"one call asks {MAX_PEERS_ASKED} dispatchers at most") for peer in others),
            *(_silent(who, "its address may not be dialled") for who in self._refused().values()),
        ]
        self._metrics.looks.labels("answered").inc(len(answers) - len(silent))
        self._metrics.looks.labels("silent").inc(len(silent))
        self._metrics.looks.labels("not_asked").inc(len(not_asked))
        return looks, silent + not_asked

"""What other dispatchers know of nodes: `services.dispatcher.peers.looks`."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from cloudhub.v1.dispatcher_pb2 import ListNodesRequest, NodeDelivery
from cloudhub.v1.peer_pb2 import LookAtNodesRequest, LookAtNodesResponse, NodeLook
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.dispatcher.node_notices import Notice
from services.dispatcher.peers import looks as module
from services.dispatcher.peers.looks import MAX_NODES, Looks, with_looks
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.peers.peer import CALL_SECONDS, Peer
from services.dispatcher.peers.servicer import PeerServicer
from services.dispatcher.policy import PolicySettings
from services.runtime.errors import InvalidRequest
from tests.support.dispatcher import running_delivery_half

NOTHING: Any = None


class Stub:
    """Another dispatcher; one that is `silent` takes the whole time that it has."""

    def __init__(self, *nodes: NodeLook, silent: bool = False) -> None:
        self.nodes = nodes
        self.silent = silent
        self.asked: list[tuple[LookAtNodesRequest, float]] = []

    async def LookAtNodes(self, request: LookAtNodesRequest, timeout: float) -> LookAtNodesResponse:
        """See peer.proto."""
        self.asked.append((request, timeout))
        if self.silent:
            raise deadline_exceeded()
        return LookAtNodesResponse(nodes=self.nodes)


def deadline_exceeded() -> grpc.aio.AioRpcError:
    """What grpc.aio raises."""
    return grpc.aio.AioRpcError(
        grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata(), "Deadline Exceeded"
    )


def peer(name: str, stub: Stub | None) -> Peer:
    """As a dispatcher has it; None: it has only just come."""
    made = Peer(DispatcherPeer(dispatcher_id=name, name=name, address=f"{name}:50051"), *(NOTHING,) * 5)
    made._stub = stub
    return made


def looks_at(peers: Sequence[Peer], refused: Sequence[str] = ()) -> tuple[Looks, CollectorRegistry]:
    registry = CollectorRegistry()
    barred = {name: DispatcherPeer(dispatcher_id=name, name=name) for name in refused}
    return Looks(peers, PeerMetrics(registry), lambda: barred), registry


def counted(registry: CollectorRegistry, outcome: str) -> float:
    return registry.get_sample_value("cloudhub_dispatcher_peers_looks_total", {"outcome": outcome}) or 0.0


@given(st.permutations([(2, True, 0), (3, True, 7), (4, False, 0)]), st.sampled_from([0, 1, 9]))
def test_the_newest_session_counts_in_whatever_order_answers_come(
    answers: list[tuple[int, bool, int]], own_epoch: int
) -> None:
    """Of two dispatchers that both hold a session, while it moves, the higher epoch is right."""
    node = NodeDelivery(node_id="n", pending=5, connected=own_epoch > 0, epoch=own_epoch, in_flight=1)
    looks = [
        NodeLook(node_id="n", epoch=epoch, connected=connected, in_flight=in_flight)
        for epoch, connected, in_flight in answers
    ]
    with_looks([node], [*looks, NodeLook(node_id="stranger", connected=True, epoch=99)])
    assert (node.connected, node.pending) == (True, 5)
    assert (node.epoch, node.in_flight) == ((9, 1) if own_epoch == 9 else (3, 7))


def test_what_is_noted_is_that_of_the_holder_or_else_anybodys() -> None:
    held = NodeDelivery(node_id="a", last_note="old: here")
    away = NodeDelivery(node_id="b")
    own = NodeDelivery(node_id="c", connected=True, epoch=2, last_note="mine: here")
    with_looks(
        [held, away, own],
        [
            NodeLook(node_id="a", connected=True, epoch=1, last_note="new: there"),
            NodeLook(node_id="b", last_note="refused: there"),
            NodeLook(node_id="c", last_note="former: there"),
        ],
    )
    assert [one.last_note for one in (held, away, own)] == ["new: there", "refused: there", "mine: here"]
    assert not away.connected


async def test_a_silent_dispatcher_is_named_and_the_others_have_answered() -> None:
    """C43: it costs a warning. So do one that has only just come and one that may not be dialled."""
    good = Stub(NodeLook(node_id="n1", connected=True, epoch=1))
    peers = [peer("d1", Stub(silent=True)), peer("d2", good), peer("d3", None)]
    asked, registry = looks_at(peers, ["d4"])
    looks, silent = await asked.at(["n1", "n2"], None)
    assert [one.node_id for one in looks] == ["n1"]
    assert [(one.dispatcher_id, one.address) for one in silent] == [
        ("d1", "d1:50051"),
        ("d3", "d3:50051"),
        ("d4", ""),
    ]
    assert [one.reason for one in silent] == [
        "no answer within 2 s",
        "it has only just come",
        "its address may not be dialled",
    ]
    [(request, seconds)] = good.asked
    assert list(request.node_ids) == ["n1", "n2"]
    assert seconds == CALL_SECONDS
    assert [counted(registry, one) for one in ("answered", "silent", "not_asked")] == [1, 2, 1]


@pytest.mark.parametrize(
    ("left", "seconds"), [(None, CALL_SECONDS), (60.0, CALL_SECONDS), (1.0, 0.5), (-1.0, 0.0)]
)
async def test_the_answer_is_there_before_whoever_asked_gives_up(left: float | None, seconds: float) -> None:
    stub = Stub()
    await looks_at([peer("d1", stub)])[0].at(["n"], left)
    assert stub.asked[0][1] == seconds


async def test_a_call_asks_so_many_dispatchers_and_the_others_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next call asks as many, whatever the first one asked."""
    monkeypatch.setattr(module, "MAX_PEERS_ASKED", 2)
    stubs = [Stub() for _ in range(4)]
    asked, registry = looks_at([peer(f"d{number}", stub) for number, stub in enumerate(stubs)])
    for _, silent in await asyncio.gather(asked.at(["n"], None), asked.at(["bystander"], None)):
        assert [one.dispatcher_id for one in silent] == ["d2", "d3"]
        assert "asks 2 dispatchers at most" in silent[0].reason
    assert [len(stub.asked) for stub in stubs] == [2, 2, 0, 0]
    assert counted(registry, "not_asked") == 4


async def test_what_is_told_of_nodes_and_of_so_many_at_once() -> None:
    """Only what this process alone knows: of a node without a session or a note, nothing."""
    async with running_delivery_half(PolicySettings()) as half:
        await half.connect("edge-1", epoch=5)
        half.delivery.notices.tell("edge-2", 3, Notice.LINK_REFUSED, "too large")
        servicer = PeerServicer(half.delivery, *(NOTHING,) * 4)
        ids = ["edge-1", "edge-2", "edge-3"]
        answer = await servicer.LookAtNodes(LookAtNodesRequest(node_ids=ids), NOTHING)
        assert list(answer.nodes) == [
            NodeLook(node_id="edge-1", connected=True, epoch=5),
            NodeLook(node_id="edge-2", last_note="link_refused: too large"),
        ]
        many = [f"n{number}" for number in range(MAX_NODES)]
        assert not (await servicer.LookAtNodes(LookAtNodesRequest(node_ids=many), NOTHING)).nodes
        with pytest.raises(InvalidRequest) as refused:
            await servicer.LookAtNodes(LookAtNodesRequest(node_ids=[*many, "edge-1"]), NOTHING)
        assert "at most 1000" in refused.value.detail


class Context:
    """Of a call that has so long left."""

    def time_remaining(self) -> float:
        """As grpc.aio has it."""
        return 8.0


async def test_nodes_are_listed_with_what_is_known_elsewhere_only_if_that_is_wanted() -> None:
    async with running_delivery_half(PolicySettings()) as half:
        await half.connect("edge-1")
        stub = Stub(NodeLook(node_id="edge-1", connected=True, epoch=9, in_flight=4))
        half.admin._looks = looks_at([peer("d1", stub), peer("d2", Stub(silent=True))])[0]
        context = cast("Any", Context())
        alone = await half.admin.ListNodes(ListNodesRequest(), context)
        together = await half.admin.ListNodes(ListNodesRequest(everywhere=True), context)
    assert [(one.epoch, one.in_flight) for one in alone.nodes] == [(1, 0)]
    assert (alone.everywhere, list(alone.silent)) == (False, [])
    assert [(one.epoch, one.in_flight) for one in together.nodes] == [(9, 4)]
    assert (together.everywhere, [one.name for one in together.silent]) == (True, ["d2"])
    assert len(stub.asked) == 1

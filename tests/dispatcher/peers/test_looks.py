"""What other dispatchers know of nodes: `services.dispatcher.peers.looks`."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from cloudhub.v1.dispatcher_pb2 import (
    DELIVERY_STATE_IN_FLIGHT,
    DELIVERY_STATE_PENDING,
    ExplainDeliveryRequest,
    FindObjectRequest,
    InspectNodeRequest,
    ListNodesRequest,
    NodeDelivery,
)
from cloudhub.v1.peer_pb2 import (
    LookAtNodesRequest,
    LookAtNodesResponse,
    NodeLook,
    ObjectLook,
    ObjectOfNode,
)
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.dispatcher.node_notices import Notice
from services.dispatcher.peers import looks as module
from services.dispatcher.peers.looks import MAX_NODES, MAX_OBJECTS, Looked, Looks, with_looks
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.peers.peer import CALL_SECONDS, Peer
from services.dispatcher.peers.servicer import PeerServicer
from services.dispatcher.policy import PolicySettings
from services.dispatcher.standing import Standing
from services.runtime.errors import InvalidRequest
from tests.support.dispatcher import DeliveryHalf, request, running_delivery_half

NOTHING: Any = None


class Stub:
    """Another dispatcher; one that is `silent` takes the whole time that it has."""

    def __init__(
        self,
        *nodes: NodeLook,
        objects: Sequence[ObjectLook] = (),
        silent: bool = False,
        tells_of_objects: bool = True,
    ) -> None:
        self.nodes = nodes
        self.objects = objects
        self.tells_of_objects = tells_of_objects
        self.silent = silent
        self.asked: list[tuple[LookAtNodesRequest, float]] = []

    async def LookAtNodes(self, request: LookAtNodesRequest, timeout: float) -> LookAtNodesResponse:
        """See peer.proto."""
        self.asked.append((request, timeout))
        if self.silent:
            raise deadline_exceeded()
        return LookAtNodesResponse(
            nodes=self.nodes, objects=self.objects, looked_at_objects=self.tells_of_objects
        )


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
    looked = await asked.at(None, ["n1", "n2"])
    assert [one.node_id for one in looked.nodes] == ["n1"]
    assert [(one.dispatcher_id, one.address) for one in looked.silent] == [
        ("d1", "d1:50051"),
        ("d3", "d3:50051"),
        ("d4", ""),
    ]
    assert [one.reason for one in looked.silent] == [
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
    await looks_at([peer("d1", stub)])[0].at(left, ["n"])
    assert stub.asked[0][1] == seconds


async def test_a_call_asks_so_many_dispatchers_and_the_others_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next call asks as many, whatever the first one asked."""
    monkeypatch.setattr(module, "MAX_PEERS_ASKED", 2)
    stubs = [Stub() for _ in range(4)]
    asked, registry = looks_at([peer(f"d{number}", stub) for number, stub in enumerate(stubs)])
    for looked in await asyncio.gather(asked.at(None, ["n"]), asked.at(None, ["bystander"])):
        assert [one.dispatcher_id for one in looked.silent] == ["d2", "d3"]
        assert "asks 2 dispatchers at most" in looked.silent[0].reason
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


async def test_what_is_told_of_objects_and_of_so_many_at_once() -> None:
    """Of an object whose node has no session here, nothing: another dispatcher may have it."""
    async with running_delivery_half(PolicySettings(window_messages=1)) as half:
        await half.connect("edge-1", epoch=5)
        await published(half, "edge-1", "a", "b")
        servicer = PeerServicer(half.delivery, *(NOTHING,) * 4)
        names = [("edge-1", "a"), ("edge-1", "b"), ("edge-2", "a")]
        asked = [ObjectOfNode(node_id=node_id, object_key=key) for node_id, key in names]
        answer = await servicer.LookAtNodes(LookAtNodesRequest(objects=asked), NOTHING)
        assert list(answer.objects) == [
            ObjectLook(node_id="edge-1", object_key="a", epoch=5, in_flight=True),
            ObjectLook(node_id="edge-1", object_key="b", epoch=5),
        ]
        many = [ObjectOfNode(node_id="edge-2", object_key=str(number)) for number in range(MAX_OBJECTS)]
        assert not (await servicer.LookAtNodes(LookAtNodesRequest(objects=many), NOTHING)).objects
        with pytest.raises(InvalidRequest) as refused:
            await servicer.LookAtNodes(LookAtNodesRequest(objects=[*many, *asked]), NOTHING)
        assert "at most 1000" in refused.value.detail


async def test_the_newest_session_tells_how_an_object_stands() -> None:
    """Nothing is asked about nothing."""
    old = ObjectLook(node_id="n", object_key="a", epoch=2, blocked_by="z", doubtful_links=3)
    new = ObjectLook(node_id="n", object_key="a", epoch=7, in_flight=True)
    stubs = [Stub(objects=[new]), Stub(objects=[old])]
    asked, _ = looks_at([peer(f"d{number}", stub) for number, stub in enumerate(stubs)])
    looked = await asked.at(None, objects=[("n", "a")])
    assert looked.standings == {("n", "a"): Standing(7, in_flight=True)}
    assert [list(stub.asked[0][0].objects) for stub in stubs] == [
        [ObjectOfNode(node_id="n", object_key="a")]
    ] * 2
    assert await asked.at(None) == Looked()
    assert [len(stub.asked) for stub in stubs] == [1, 1]


async def test_a_dispatcher_of_an_older_release_is_named_where_objects_are_asked_for() -> None:
    """While releases are mixed an answer does not pass for the whole one; what it tells of nodes counts."""
    old = Stub(NodeLook(node_id="n", connected=True, epoch=3, in_flight=1), tells_of_objects=False)
    asked, registry = looks_at([peer("d1", old)])
    looked = await asked.at(None, ["n"], [("n", "a")])
    assert [one.epoch for one in looked.nodes] == [3]
    assert [(one.name, one.reason) for one in looked.silent] == [
        ("d1", "it is of an older release, which does not tell of objects")
    ]
    assert not (await asked.at(None, ["n"])).silent
    assert counted(registry, "answered") == 2


async def test_one_that_was_silent_is_spared_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of many pages waits for it once. One that was refused at once, or did not come to answer before
    the caller gave up, is asked again."""
    slow, quick = Stub(silent=True), Stub(silent=True)
    asked, _ = looks_at([peer("d1", slow), peer("d2", quick)])
    look = slow.LookAtNodes

    async def late(request: LookAtNodesRequest, timeout: float) -> LookAtNodesResponse:
        await asyncio.sleep(0.35)
        return await look(request, timeout)

    monkeypatch.setattr(slow, "LookAtNodes", late)
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.3)
    for _ in range(2):
        told = (await asked.at(None, ["n"])).silent
        assert [(one.name, one.reason) for one in told] == [
            ("d1", "no answer within 2 s"),
            ("d2", "no answer within 2 s"),
        ]
    assert (len(slow.asked), len(quick.asked)) == (1, 2)
    monkeypatch.setattr(module, "SPARED_SECONDS", 0.0)
    again, _ = looks_at([peer("d1", slow)])
    for _ in range(2):
        await again.at(None, ["n"])
    assert len(slow.asked) == 3


async def published(half: DeliveryHalf, node_id: str, *keys: str) -> None:
    """An object of each key."""
    for key in keys:
        content = f'{{"metadata":{{"uid":"{key}"}}}}'.encode()
        await half.publish(request(node_id, content=content, resource=f"default/pod/{key}"))


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


async def test_what_waits_for_a_node_of_another_dispatcher_is_told_only_if_that_is_wanted() -> None:
    """C43: what is in flight there, the same three questions tell as its own dispatcher does."""
    async with running_delivery_half(PolicySettings()) as half:
        await half.connect("edge-here")
        await published(half, "edge-here", "a", "own")
        await published(half, "edge-there", "a", "b")
        stub = Stub(
            NodeLook(node_id="edge-there", connected=True, epoch=9, in_flight=1),
            objects=[ObjectLook(node_id="edge-there", object_key="a", epoch=9, in_flight=True)],
        )
        half.admin._looks = looks_at([peer("d1", stub), peer("d2", Stub(silent=True))])[0]
        context, admin = cast("Any", Context()), half.admin
        there: Any = {"node_id": "edge-there"}
        alone = await admin.InspectNode(InspectNodeRequest(**there), context)
        inspected = await admin.InspectNode(InspectNodeRequest(**there, everywhere=True), context)
        apart = await admin.ExplainDelivery(ExplainDeliveryRequest(**there, object_key="a"), context)
        explained, waiting = [
            await admin.ExplainDelivery(
                ExplainDeliveryRequest(**there, object_key=key, everywhere=True), context
            )
            for key in ("a", "b")
        ]
        found = await admin.FindObject(FindObjectRequest(object="a", everywhere=True), context)
        questions = len(stub.asked)
        of_own = await admin.ExplainDelivery(
            ExplainDeliveryRequest(node_id="edge-here", object_key="own", everywhere=True), context
        )
    assert not alone.everywhere
    assert not alone.silent
    assert [one.state for one in alone.objects] == [DELIVERY_STATE_PENDING] * 2
    assert "not connected to this dispatcher" in apart.explanation
    assert (inspected.node.connected, inspected.node.epoch, inspected.node.in_flight) == (True, 9, 1)
    assert [one.state for one in inspected.objects] == [DELIVERY_STATE_IN_FLIGHT, DELIVERY_STATE_PENDING]
    assert (explained.state, waiting.state) == (DELIVERY_STATE_IN_FLIGHT, DELIVERY_STATE_PENDING)
    assert "In flight" in explained.explanation
    assert "not connected to any dispatcher that answered" in waiting.explanation
    assert [(one.node_id, one.object.state) for one in found.nodes] == [
        ("edge-here", DELIVERY_STATE_IN_FLIGHT),
        ("edge-there", DELIVERY_STATE_IN_FLIGHT),
    ]
    for answer in (inspected, explained, found):
        assert answer.everywhere
        assert [one.name for one in answer.silent] == ["d2"]
    # Its own session may have moved while it stood still: the others are asked about its nodes too.
    assert (of_own.state, len(stub.asked)) == (DELIVERY_STATE_IN_FLIGHT, questions + 1)
    assert {one.node_id for one in stub.asked[questions - 1][0].objects} == {"edge-here", "edge-there"}

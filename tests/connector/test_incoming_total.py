"""Frames of all edges that are not whole: which links give way where there are too many."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from cloudhub.v1 import link_pb2
from services.connector.connections import ConnectionLimits
from services.connector.inbound import InboundLedger
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers, keepalive
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.quic_peer import UP, QuicPeers, framed

MIB = 1024 * 1024
ROOM = 8 * MIB
PART = 900 * 1024

Begin = Callable[[str, int], Any]


def _kept(app: Any, wanted: float) -> bool:
    """Whether so much is kept, or something had to go."""
    return metric(app, "incoming_bytes") >= wanted or metric(app, "incoming_evictions_total") > 0


@asynccontextmanager
async def beginners(transport: str, authority: TestAuthority, app: Any) -> AsyncIterator[Begin]:
    """Opens links that send the beginning of a frame, so many bytes of it, and no more."""
    async with AsyncExitStack() as stack:
        open_ones: list[Any] = []
        over_tcp, over_quic = EdgePeers(authority, app.edge_port), QuicPeers(authority, app.quic_port)

        async def begin(node_id: str, size_bytes: int) -> None:
            if transport == "quic":
                peer = await stack.enter_async_context(over_quic.link(node_id))
                head = framed(b"")[:6] + (2 * MIB).to_bytes(4, "big")
                peer.write(UP, head + b"x" * size_bytes)
            else:
                open_ones.append(await over_tcp.upgraded(node_id))
                writer = open_ones[-1][1]
                stack.callback(writer.transport.abort)
                writer.write(b"\x81\xff" + (2 * MIB).to_bytes(8, "big") + bytes(4) + b"x" * size_bytes)

        yield begin


@pytest.mark.parametrize("transport", ["websocket", "quic"])
async def test_links_whose_frames_have_waited_longest_give_way(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher, transport: str
) -> None:
    """C33, invariant 7: twelve edges begin a frame each and stop; no more is kept than there is room for, and
    a bystander's frames go through, a large one too."""
    async with start_app() as app:
        app.links._tools.incoming.max_bytes = ROOM
        peers = EdgePeers(authority, app.edge_port)
        async with peers.link("quick") as quick, beginners(transport, authority, app) as begin:
            await dispatcher.until(lambda: dispatcher.announcements)
            own = dispatcher.announcements[0].link
            for number in range(12):
                await begin(f"slow-{number}", PART)
                wanted = 0.99 * PART * min(number + 1, 6)
                await poll(partial(_kept, app, wanted))
                assert metric(app, "incoming_bytes") <= ROOM
                await quick.send(keepalive(f"q{number}"))
            await poll(lambda: metric(app, "incoming_evictions_total") >= 6)
            content = "y" * int(1.9 * MIB)
            await quick.send(json.dumps({"header": {"msg_id": "big"}, "route": {}, "content": content}))
            await dispatcher.until(lambda: len(dispatcher.upstream) == 13)
            assert metric(app, "incoming_bytes") <= ROOM
            assert {end.reason for end in dispatcher.ended} == {link_pb2.CLOSE_REASON_OVERLOADED}
            assert own not in {end.link for end in dispatcher.ended}
            assert metric(app, "incoming_evictions_total") == len(dispatcher.ended)
        await poll(lambda: metric(app, "links") == 0)
        assert metric(app, "incoming_bytes") == 0, "links that are gone count for nothing"


async def test_a_frame_that_waits_for_its_receipt_counts_as_far_as_it_is_over_the_links_bound(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    """The links' own bounds are soft by a frame: of that frame the sum is bounded."""
    assert ConnectionLimits().frame_most_bytes == 4 * MIB
    dispatcher.receipts = False
    async with start_app() as app, EdgePeers(authority, app.edge_port).link() as link:
        frame = json.dumps({"header": {"msg_id": "big"}, "route": {}, "content": "y" * 3 * MIB})
        await link.send(frame)
        await dispatcher.until(lambda: dispatcher.upstream)
        assert metric(app, "incoming_bytes") == len(frame) - MIB
        receipt = link_pb2.Receipt(link=1, epoch=dispatcher.epochs[1], through=1)
        dispatcher.send(link_pb2.DispatcherBatch(receipts=[receipt]))
        await poll(lambda: metric(app, "incoming_bytes") == 0)


def test_what_a_ledger_has_above_its_bound() -> None:
    ledger = InboundLedger(4, 1000)
    ledger.record(b"x" * 900)
    assert (ledger.excess_bytes, ledger.full) == (0, False)
    ledger.record(b"x" * 4000)
    assert (ledger.excess_bytes, ledger.full) == (3900, True)
    ledger.receipt(1)
    assert ledger.excess_bytes == 3000

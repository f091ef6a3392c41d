"""Links between two scripted dispatchers: `services.connector.transfers`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from cloudhub.v1 import link_pb2, message_pb2
from services.connector import dispatcher_stream, transfers
from services.connector.app import ConnectorApp, running_app
from services.connector.rendezvous import best_dispatcher
from services.runtime.backoff import Backoff
from services.runtime.tracing import Tracing
from tests.connector.conftest import MakeSettings, metric, poll, until_attached
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers, keepalive
from tests.support.link_dispatcher import LinkDispatcher

UNAVAILABLE = link_pb2.REFUSAL_REASON_UNAVAILABLE
NOT_NEWEST = link_pb2.REFUSAL_REASON_NOT_NEWEST
TRANSFERRED = link_pb2.CLOSE_REASON_TRANSFERRED


@dataclass
class Pair:
    """A connector with a link of edge-1 at `present`, and `other` beside it. Grants of `other` are newer."""

    app: ConnectorApp
    present: LinkDispatcher
    other: LinkDispatcher
    peers: EdgePeers
    edge: ClientConnection

    async def gets(self, dispatcher: LinkDispatcher, text: str) -> None:
        """A message of this dispatcher reaches the edge."""
        dispatcher.send_messages(1, message_pb2.Message(id=text))
        assert text in str(await asyncio.wait_for(self.edge.recv(), 10))

    async def moved(self) -> None:
        """Returns when the link belongs to `other`."""
        await poll(lambda: self.app.links.get(1).stream.dispatcher_id == "other")  # type: ignore[union-attr]


@pytest.fixture
def two(make_settings: MakeSettings, authority: TestAuthority) -> "TwoDispatchers":
    return TwoDispatchers(make_settings, authority)


class TwoDispatchers:
    """Starts a Pair; keywords change the connector's settings."""

    def __init__(self, make_settings: MakeSettings, authority: TestAuthority) -> None:
        self._make_settings = make_settings
        self._authority = authority

    @asynccontextmanager
    async def running(self, lease_seconds: float = 15.0, **changes: object) -> AsyncIterator[Pair]:
        one = LinkDispatcher("one", lease_seconds)
        two = LinkDispatcher("two", lease_seconds)
        async with one.running(), two.running():
            best = best_dispatcher("edge-1", [one.address, two.address])
            present, other = (one, two) if best == one.address else (two, one)
            present.dispatcher_id, other.dispatcher_id = "present", "other"
            other.next_epoch = 201
            settings = self._make_settings(f"{one.address},{two.address}", **changes)
            async with running_app(settings, tracing=Tracing(None, "connector")) as app:
                await until_attached(app, 2)
                peers = EdgePeers(self._authority, app.edge_port)
                async with peers.link("edge-1") as edge:
                    assert (await present.announced()).link == 1
                    yield Pair(app, present, other, peers, edge)


async def test_a_draining_dispatcher_is_obeyed_until_another_one_grants(two: TwoDispatchers) -> None:
    """C34: then in one step the link is the other's; the former is told, and its words are dropped."""
    async with two.running() as pair:
        pair.other.grant = False
        pair.present.receipts = False
        await pair.edge.send(keepalive("k1"))
        await pair.present.until(lambda: pair.present.upstream)
        pair.present.drain()
        asked = await pair.other.asked()
        assert (asked.link.link, asked.link.node_id, asked.epoch) == (1, "edge-1", 101)
        await pair.gets(pair.present, "still")
        await pair.edge.send(keepalive("k2"))
        await pair.present.until(lambda: len(pair.present.upstream) == 2)
        pair.other.give_verdict(1)
        await pair.other.until(lambda: len(pair.other.upstream) == 2)
        assert [(frame.number, frame.epoch, frame.message.id) for frame in pair.other.upstream] == [
            (1, 201, "k1"),
            (2, 201, "k2"),
        ]
        await pair.present.until(lambda: pair.present.ended)
        assert (pair.present.ended[0].epoch, pair.present.ended[0].reason) == (101, TRANSFERRED)
        pair.present.send_messages(1, message_pb2.Message(id="late"))
        await poll(lambda: metric(pair.app, "dropped_total", element="downstream", reason="link_gone") == 1)
        await pair.gets(pair.other, "new")
        await pair.edge.send(keepalive("k3"))
        await pair.other.until(lambda: len(pair.other.upstream) == 3)
        assert pair.other.upstream[2].number == 3
        assert metric(pair.app, "links") == 1


async def test_the_next_dispatcher_is_told_how_long_the_link_is_open(two: TwoDispatchers) -> None:
    """One that is merely announced is not open yet."""
    async with two.running() as pair:
        assert pair.present.announcements[0].open_seconds == 0
        link = pair.app.links.get(1)
        assert link is not None
        link.opened_at -= 3600.0
        pair.present.drain()
        assert 3600 <= (await pair.other.asked()).link.open_seconds < 3660


DECLINED = link_pb2.Refusal(reason=UNAVAILABLE, detail="the dispatcher is stopping", nothing_asked=True)


def both_hold(pair: Pair) -> tuple[LinkDispatcher, LinkDispatcher]:
    """Neither gives verdicts by itself; the one that edge-1 is announced to comes first."""
    pair.present.admit = pair.other.admit = False
    return pair.present, pair.other


async def test_a_new_link_that_a_dispatcher_declines_is_opened_by_another(two: TwoDispatchers) -> None:
    """The edge notices nothing; the dispatcher that declined has no word about the link any more."""
    async with two.running() as pair:
        first, second = both_hold(pair)
        dialling = asyncio.create_task(pair.peers.open("edge-1"))
        link = (await first.announced(2)).link
        first.give_verdict(link, DECLINED)
        assert (await second.announced()).link == link
        first.give_verdict(link)
        await poll(lambda: metric(pair.app, "dropped_total", element="verdict", reason="link_gone") == 1)
        assert not dialling.done()
        second.give_verdict(link)
        edge = await dialling
        found = pair.app.links.get(link)
        assert found is not None
        assert found.stream is not None
        assert found.stream.dispatcher_id == "other"
        assert metric(pair.app, "announced_again_total", reason="declined") == 1
        await edge.close()


async def test_when_every_dispatcher_declines_the_edge_gets_503(two: TwoDispatchers) -> None:
    """Each is asked once, also if the second one is lost instead of answering."""
    async with two.running() as pair:
        first, second = both_hold(pair)
        for number, ends in enumerate((lambda link: second.give_verdict(link, DECLINED), None)):
            dialling = asyncio.create_task(pair.peers.open("edge-1"))
            link = (await first.announced(2 + number)).link
            first.give_verdict(link, DECLINED)
            await second.announced(1 + number)
            if ends is not None:
                ends(link)
            else:
                second.end_stream()
            with pytest.raises(InvalidStatus) as refused:
                await dialling
            assert refused.value.response.status_code == 503
        assert (len(first.announcements), len(second.announcements)) == (3, 2)
        assert metric(pair.app, "refusals_total", status="503", reason="unavailable") == 1
        assert metric(pair.app, "refusals_total", status="503", reason="dispatcher_lost") == 1


async def test_a_refusal_that_sessions_may_know_of_is_the_last_word(two: TwoDispatchers) -> None:
    """The node may have a newer link meanwhile: opened elsewhere, the older one would supersede it."""
    async with two.running() as pair:
        first, second = both_hold(pair)
        dialling = asyncio.create_task(pair.peers.open("edge-1"))
        first.refuse((await first.announced(2)).link, UNAVAILABLE)
        with pytest.raises(InvalidStatus) as refused:
            await dialling
        assert refused.value.response.status_code == 503
        assert second.announcements == []


async def test_a_dispatcher_late_with_its_lease_loses_its_links(two: TwoDispatchers) -> None:
    """Sessions cannot hear of it, so it may be given up; one that is back in time keeps what is left."""
    async with two.running(lease_seconds=5.0) as pair:
        pair.present.beat(4.9)
        pair.present.beat(5.1)
        assert (await pair.other.asked()).epoch == 101
        await pair.moved()


async def test_when_all_are_late_links_stay_where_they_are(two: TwoDispatchers) -> None:
    """C36: sessions is away, nobody could grant anything; what was wanted is forgotten when it is back."""
    async with two.running(lease_seconds=5.0) as pair:
        pair.other.beat(60.0)
        await poll(lambda: pair.app.dispatchers.fit == 1)
        pair.present.beat(60.0)
        await poll(lambda: pair.app.dispatchers.fit == 0)
        await pair.gets(pair.present, "goes on")
        pair.present.beat(0.1)
        await poll(lambda: pair.app.dispatchers.fit == 1)
        pair.other.beat(0.1)
        await pair.gets(pair.present, "as before")
        assert pair.other.transfers == []
        assert pair.present.transfers == []


async def test_a_silent_dispatcher_loses_its_links(two: TwoDispatchers) -> None:
    """C36: a lease without a word; it may be paused."""
    async with two.running(lease_seconds=0.6) as pair:
        beating = asyncio.create_task(_beat(pair.other))
        await pair.other.asked()
        await pair.gets(pair.other, "from the other")
        beating.cancel()


async def _beat(dispatcher: LinkDispatcher) -> None:
    while True:
        dispatcher.beat()
        await asyncio.sleep(0.1)


async def test_a_link_that_cannot_move_stays_and_asks_again(
    two: TwoDispatchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "_BACKOFF", Backoff(0.02, 0.02))
    async with two.running() as pair:
        pair.other.grant = False
        pair.present.drain()
        await pair.other.asked()
        pair.other.refuse(1, UNAVAILABLE)
        assert (await pair.other.asked(2)).epoch == 101
        await pair.gets(pair.present, "still here")
        pair.other.give_verdict(1)
        await pair.gets(pair.other, "now there")
        assert metric(pair.app, "transfers_total", outcome="unavailable") == 1


async def test_without_a_verdict_in_time_it_asks_again_and_obeys_a_late_one(
    two: TwoDispatchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C37: the grant that the registry gave last has the highest epoch, whenever it arrives."""
    monkeypatch.setattr(transfers, "_BACKOFF", Backoff(0.02, 0.02))
    async with two.running(verdict_seconds=0.3) as pair:
        pair.other.grant = False
        pair.present.drain()
        await pair.other.asked(2)
        assert metric(pair.app, "transfers_total", outcome="no_verdict") >= 1
        pair.other.next_epoch = 205
        pair.other.give_verdict(1)
        await pair.moved()
        pair.other.next_epoch = 203
        pair.other.give_verdict(1)
        await pair.other.until(lambda: pair.other.ended)
        assert (pair.other.ended[0].epoch, pair.other.ended[0].reason) == (203, TRANSFERRED)
        pair.other.epochs[1] = 205
        await pair.gets(pair.other, "under the newest")
        assert metric(pair.app, "transfers_total", outcome="outdated") == 1


@pytest.mark.parametrize(
    ("close_reason", "code"),
    [
        (link_pb2.CLOSE_REASON_UNSPECIFIED, 4001),
        (link_pb2.CLOSE_REASON_SUPERSEDED, 4001),
        (link_pb2.CLOSE_REASON_EVICTED, 4002),
        (link_pb2.CLOSE_REASON_DISPATCHER_LOST, 1012),
    ],
)
async def test_a_link_whose_session_is_over_is_closed_with_its_reason(
    two: TwoDispatchers, close_reason: link_pb2.CloseReason.ValueType, code: int
) -> None:
    """C37: of a transfer that is refused for good; the edge learns whether to come back."""
    async with two.running() as pair:
        pair.other.grant = False
        pair.present.drain()
        await pair.other.asked()
        pair.other.refuse(1, NOT_NEWEST, close_reason)
        with pytest.raises(ConnectionClosed) as closed:
            await pair.edge.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
        await pair.present.until(lambda: pair.present.ended)
        assert pair.present.ended[0].epoch == 101
        assert len(pair.app.links) == 0


async def test_an_end_during_a_move_is_told_to_both(two: TwoDispatchers) -> None:
    """C8: whichever of them has the session ends it."""
    async with two.running() as pair:
        pair.other.grant = False
        pair.present.drain()
        await pair.other.asked()
        await pair.edge.close()
        await pair.present.until(lambda: pair.present.ended)
        await pair.other.until(lambda: pair.other.ended)
        assert [(end.epoch, end.reason) for end in (pair.present.ended[0], pair.other.ended[0])] == [
            (101, link_pb2.CLOSE_REASON_EDGE_CLOSED),
            (0, link_pb2.CLOSE_REASON_EDGE_CLOSED),
        ]
        pair.other.give_verdict(1)
        await pair.other.until(lambda: len(pair.other.ended) == 2)
        assert pair.other.ended[1].epoch == 201, "a session that was granted for nothing does not stay"


async def test_a_dispatcher_that_lets_a_link_go_is_asked_no_more_for_it(two: TwoDispatchers) -> None:
    """C36: the registry gave the session to somebody whose word never came."""
    async with two.running() as pair:
        pair.present.close_link(1, TRANSFERRED)
        assert (await pair.present.asked()).epoch == 101, "it is the best, and may have the link again"
        await pair.present.until(lambda: pair.present.epochs[1] == 102)
        await pair.gets(pair.present, "back")


async def test_a_link_that_waits_for_its_verdict_is_announced_to_another_one(
    two: TwoDispatchers,
) -> None:
    async with two.running() as pair:
        pair.present.admit = False
        nodes = (f"edge-{number}" for number in range(2, 50))
        mine = (
            node
            for node in nodes
            if best_dispatcher(node, [pair.present.address, pair.other.address]) == pair.present.address
        )
        opening = asyncio.create_task(pair.peers.open(next(mine)))
        await pair.present.announced(2)
        pair.present.hold_hello = True
        pair.present.end_stream()
        peer = await opening
        assert (await pair.other.announced()).link == 2
        await peer.close()


async def test_while_nobody_has_the_link_its_frames_are_kept_up_to_the_bound(
    two: TwoDispatchers,
) -> None:
    """C34: then its reads pause; the next dispatcher gets all of them in order."""
    async with two.running(unreceipted_most_frames=5) as pair:
        pair.other.grant = False
        pair.present.hold_hello = True
        pair.present.end_stream()
        await pair.other.asked()
        for number in range(20):
            await pair.edge.send(keepalive(f"k{number}"))
        link = pair.app.links.get(1)
        assert link is not None
        await poll(lambda: link.state is not None and len(link.state.inbound) == 5)
        assert link.stream is None
        pair.other.give_verdict(1)
        await pair.other.until(lambda: len(pair.other.upstream) == 20)
        assert [frame.message.id for frame in pair.other.upstream] == [f"k{n}" for n in range(20)]
        assert [frame.number for frame in pair.other.upstream] == list(range(1, 21))
        assert metric(pair.app, "links") == 1


async def test_a_link_without_a_dispatcher_is_closed_when_its_edge_is_silent_for_long(
    two: TwoDispatchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4: nobody else is there to find out. One that answers pings is as alive as others."""
    monkeypatch.setattr(transfers, "_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(transfers, "_ASK_SECONDS", 0.1)
    monkeypatch.setattr(transfers, "_SILENCE_CHECK_SECONDS", 0.05)
    async with two.running() as pair:
        pair.other.grant = False
        pair.present.hold_hello = True
        pair.present.end_stream()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await pair.edge.recv()
        protocol = pair.edge.protocol
        send_frame = protocol.send_frame

        def send_no_pong(frame: Frame) -> None:
            if frame.opcode is not Opcode.PONG:
                send_frame(frame)

        monkeypatch.setattr(protocol, "send_frame", send_no_pong)
        with pytest.raises(ConnectionClosed) as closed:
            await pair.edge.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4008


async def test_links_move_to_a_better_dispatcher_without_a_close(
    two: TwoDispatchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream was lost and is back; the link returns to the dispatcher that it belongs to."""
    monkeypatch.setattr(dispatcher_stream, "_HELLO_TIMEOUT", 0.2)
    async with two.running() as pair:
        pair.present.hold_hello = True
        pair.present.end_stream()
        await pair.other.asked()
        await pair.gets(pair.other, "elsewhere")
        pair.present.next_epoch = 301
        pair.present.hold_hello = False
        assert (await pair.present.asked()).epoch == 201
        await pair.present.until(lambda: pair.present.epochs[1] == 301)
        await pair.gets(pair.present, "home")
        await pair.other.until(lambda: pair.other.ended)
        assert pair.other.ended[0].reason == TRANSFERRED


async def test_the_links_of_a_lost_dispatcher_ask_in_portions(
    two: TwoDispatchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "_MOST_ASKED", 3)
    async with two.running() as pair:
        pair.other.grant = False
        addresses = [pair.present.address, pair.other.address]
        mine = [
            node
            for node in (f"edge-{number}" for number in range(2, 60))
            if best_dispatcher(node, addresses) == pair.present.address
        ][:7]
        peers = [await pair.peers.open(node) for node in mine]
        pair.present.drain()
        answered = 0
        for portion in [3, 3, 2]:
            await pair.other.asked(answered + portion)
            assert len(pair.other.transfers) == answered + portion
            for transfer in pair.other.transfers[answered:]:
                pair.other.give_verdict(transfer.link.link)
            answered += portion
        await poll(lambda: metric(pair.app, "transfers_total", outcome="moved") == 8)
        assert metric(pair.app, "links") == 8
        for peer in peers:
            await peer.close()


async def test_a_link_that_ends_without_a_dispatcher_is_told_to_the_next_one(two: TwoDispatchers) -> None:
    """C8: `disconnected` need not wait for a lease. In one batch with its transfer, which has its number."""
    async with two.running() as pair:
        for dispatcher in (pair.present, pair.other):
            dispatcher.hold_hello = True
            dispatcher.end_stream()
        await poll(lambda: not pair.app.dispatchers.attached)
        await pair.edge.close()
        await poll(lambda: metric(pair.app, "links") == 0)
        pair.other.hold_hello = False
        asked = await pair.other.asked()
        assert (asked.link.link, asked.link.node_id, asked.epoch) == (1, "edge-1", 101)
        await pair.other.until(lambda: pair.other.ended)
        assert (pair.other.ended[0].link, pair.other.ended[0].epoch) == (1, 0)
        assert pair.other.ended[0].reason == link_pb2.CLOSE_REASON_EDGE_CLOSED


async def test_at_the_bound_the_oldest_end_is_forgotten(
    two: TwoDispatchers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session ends by its lease."""
    monkeypatch.setattr(transfers, "_MOST_UNTOLD", 2)
    async with two.running() as pair:
        more = [await pair.peers.open(f"edge-{number}") for number in (2, 3)]
        await poll(lambda: metric(pair.app, "links") == 3)
        for dispatcher in (pair.present, pair.other):
            dispatcher.hold_hello = True
            dispatcher.end_stream()
        await poll(lambda: not pair.app.dispatchers.attached)
        for left, edge in ((2, pair.edge), (1, more[0]), (0, more[1])):
            await edge.close()
            await links_left(pair, left)
        pair.other.hold_hello = False
        await pair.other.until(lambda: len(pair.other.ended) == 2)
        assert [end.link for end in pair.other.ended] == [2, 3]


async def links_left(pair: Pair, count: int) -> None:
    await poll(lambda: metric(pair.app, "links") == count)

"""What waits of a peer's input, and messages that come in parts: `services.connector.websocket_inbox`."""

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from services.connector.websocket_inbox import WebSocketInbox


class Told:
    """A link that keeps what it is told."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.controls = 0
        self.binaries = 0

    def frame_received(self, frame: bytes) -> None:
        self.frames.append(frame)

    def control_received(self) -> None:
        self.controls += 1

    def holding(self, size_bytes: int) -> None:
        pass

    def binary_received(self) -> None:
        self.binaries += 1

    def drained(self) -> None:
        raise AssertionError("nothing was sent")

    def ended(self, end: object) -> None:
        raise AssertionError(end)


def ends() -> tuple[ClientProtocol, WebSocketInbox]:
    """An edge's side of an open WebSocket, and the hub's inbox."""
    edge, hub = ClientProtocol(parse_uri("ws://hub/")), ServerProtocol()
    edge.send_request(edge.connect())
    hub.receive_data(b"".join(edge.data_to_send()))
    (request,) = hub.events_received()
    assert isinstance(request, Request)
    hub.send_response(hub.accept(request))
    edge.receive_data(b"".join(hub.data_to_send()))
    assert edge.state is hub.state is State.OPEN
    return edge, WebSocketInbox(hub)


def everything(inbox: WebSocketInbox) -> Told:
    told = Told()
    while inbox.waiting:
        if inbox.frames:
            inbox.hand_over(inbox.frames.popleft(), told)
        else:
            inbox.parse_slice()
    return told


def test_parts_are_one_message_and_count_as_work() -> None:
    edge, inbox = ends()
    edge.send_text(b"one ", fin=False)
    edge.send_continuation(b"mess", fin=False)
    edge.send_ping(b"between")
    edge.send_continuation(b"age", fin=True)
    edge.send_text(b"another")
    edge.send_binary(b"\0")
    inbox.unread += b"".join(edge.data_to_send())
    told = everything(inbox)
    assert told.frames == [b"one message", b"another"]
    # Two parts that end no message, and the ping.
    assert (told.controls, told.binaries) == (3, 1)


def test_a_paused_link_holds_few_parsed_frames() -> None:
    edge, inbox = ends()
    sent = [b"%07d" % number for number in range(20_000)]
    for one in sent:
        edge.send_text(one)
    inbox.unread += b"".join(edge.data_to_send())
    assert inbox.full
    inbox.parse_slice()
    # 13 bytes each, of a slice of 16 KiB.
    assert 0 < len(inbox.frames) <= 16 * 1024 // 13
    assert everything(inbox).frames == sent
    assert not inbox.full


def test_the_rest_of_a_message_that_was_dropped_is_none() -> None:
    _, inbox = ends()
    told = Told()
    inbox.hand_over(Frame(Opcode.TEXT, b"half", fin=False), told)
    inbox.drop_partial()
    inbox.hand_over(Frame(Opcode.CONT, b"rest"), told)
    assert told.frames == []

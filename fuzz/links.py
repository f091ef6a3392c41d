"""Bytes at a connector, with a certificate: requests for a link, and what follows an admitted one."""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from websockets.frames import Frame, Opcode

from fuzz.frames import frame_texts
from fuzz.hub import FuzzedHub, fuzzed_hub
from fuzz.mutations import mutated
from fuzz.target import Check
from tests.support.edge_peer import request_bytes

# What docs/protocol.md has as answers to a request that is refused, and as close codes.
STATUSES = frozenset((400, 403, 404, 405, 426, 431, 503, 505))
CODES = frozenset((1000, 1002, 1003, 1007, 1008, 1009, 1013, 4001))
# The node whose certificate the peer has.
NODE = "edge-1"
# A connector that said nothing for so long waits for more.
_QUIET_SECONDS = 0.1
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a peer says, in pieces that are sent one after the other; the last words are its own."""

    pieces: tuple[bytes, ...]


@st.composite
def _frames(draw: Callable[[SearchStrategy[Any]], Any]) -> bytes:
    """One WebSocket frame as a client writes it, or with a bit of its header wrong."""
    opcode = draw(st.sampled_from([Opcode.TEXT] * 6 + list(Opcode)))
    data = draw(frame_texts()) if opcode in (Opcode.TEXT, Opcode.CONT) else draw(st.binary(max_size=125))
    frame = bytearray(Frame(opcode, data).serialize(mask=True))
    flaw = draw(st.sampled_from(["none"] * 6 + ["no end", "reserved bit", "length", "opcode", "cut"]))
    if flaw == "no end":
        frame[0] &= 0x7F
    elif flaw == "reserved bit":
        # The first of them says that the frame is compressed, which nobody has agreed to.
        frame[0] |= draw(st.sampled_from([0x40, 0x20, 0x10]))
    elif flaw == "length":
        frame[1] = 0x80 | draw(st.sampled_from([0, 1, 125, 126, 127]))
    elif flaw == "opcode":
        frame[0] = frame[0] & 0xF0 | draw(st.integers(0, 15))
    elif flaw == "cut":
        del frame[draw(st.integers(0, len(frame))) :]
    return bytes(frame)


_REQUEST = request_bytes(NODE)
_REQUESTS = (
    _REQUEST.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
    _REQUEST.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello"),
    _REQUEST.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
    _REQUEST.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: a, b, c\r\n\r\n"),
    _REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"),
    _REQUEST.replace(b"HTTP/1.1", b"HTTP/2.0"),
    _REQUEST.replace(b"\r\n", b"\n"),
    _REQUEST.replace(b"edge-1/events", b"edge-1%2fevents"),
    _REQUEST.replace(b"edge-1", b"edge-2"),
    _REQUEST * 2,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x00" * 20_000,
    b"\r\n" * 9_000,
)


@st.composite
def conversations(draw: Callable[[SearchStrategy[Any]], Any]) -> Conversation:
    """A request, right most of the time, and frames behind it; cut into pieces anywhere."""
    first = draw(st.one_of(*[st.just(_REQUEST)] * 3, mutated(st.just(_REQUEST)), st.sampled_from(_REQUESTS)))
    said = first + b"".join(draw(st.lists(_frames(), max_size=5)))
    cuts = sorted(draw(st.lists(st.integers(0, len(said)), max_size=3)))
    return Conversation(
        tuple(said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True) if a < b)
    )


def fault_of_reply(reply: bytes) -> str:
    """What a connector should not have said, empty if nothing."""
    if not reply:
        return ""
    status = _STATUS.match(reply)
    if status is None:
        return f"no HTTP response: {reply[:80]!r}"
    if status[1] != b"101":
        return "" if int(status[1]) in STATUSES else f"status {status[1].decode()}"
    head, _, frames = reply.partition(b"\r\n\r\n")
    if b"extensions" in head.lower():
        return "an extension was agreed to"
    while len(frames) >= 2:
        size, start = frames[1], 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(frames[2:start], "big")
        payload, rest = frames[start : start + size], frames[start + size :]
        if frames[0] == 0x88:
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            if rest:
                return "there is something behind the close frame"
            # A peer's own code comes back to it.
            return "" if code in CODES or 1000 <= code <= 4999 else f"close code {code}"
        if frames[0] not in (0x81, 0x8A):
            return f"a frame that begins with {frames[0]:#x}"
        frames = rest
    return ""


async def _talk(hub: FuzzedHub, conversation: Conversation) -> str:
    reader, writer = await hub.hub.peers.raw(NODE)
    reply = bytearray()
    try:
        for piece in conversation.pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        async with asyncio.timeout(_QUIET_SECONDS):
            while data := await reader.read(65536):
                reply += data
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return fault_of_reply(bytes(reply))


@contextmanager
def conversations_checked() -> Iterator[Check[Conversation]]:
    """The check of one connection; see `fuzzed_hub` for what holds at the end."""
    with fuzzed_hub() as hub:
        count = 0

        def check(conversation: Conversation) -> None:
            nonlocal count
            fault = hub.wait(_talk(hub, conversation))
            assert not fault, f"{conversation}: {fault}"
            hub.nothing_raised()
            count += 1
            if count % 50 == 0:
                hub.wait(hub.exchange())

        yield check

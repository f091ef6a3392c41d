"""The calls on one HTTP/2 connection between a gRPC client and a server, seen from between them.

Pure: bytes in, the same bytes out. Only frame headers (RFC 9113, 4.1) and the length before each gRPC message
are read; header blocks stay as they are, so that their compression holds. A call that its caller may not have
is refused here: the client gets a status, made of fields that change nothing of that compression, and the
server a reset. What frames may be sent otherwise is for the server to say.
"""

from collections.abc import Callable, Sequence

from services.runtime.caller_shares import Party
from services.runtime.errors import HubError

Trailers = Sequence[tuple[bytes, bytes]]
"""Names and values of what ends a gRPC call, as they are on the wire."""

_PREFACE_BYTES = 24
_HEAD_BYTES = 9
_DATA, _HEADERS, _RST_STREAM, _CONTINUATION = 0, 1, 3, 9
_END_STREAM, _END_HEADERS, _PADDED = 1, 4, 8
_PREFIX_BYTES = 5
_NO_ERROR, _CANCEL, _ENHANCE_YOUR_CALM = 0, 8, 11
_SETTINGS, _GOAWAY = 4, 7
# Of deflate, which gzip is too (zlib's technical details).
_MOST_EXPANSION = 1032
_NO_FRAME = -1
MOST_REFUSALS = 128
"""A client that keeps to the server's bound on streams has fewer calls under way."""
# Of a header field's value in `refusal_frames`, which are of one frame.
_MOST_VALUE_BYTES = 4096


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _length(value: int) -> bytes:
    """A string's length in HPACK, not Huffman coded (RFC 7541, 5.1 and 5.2)."""
    if value < 127:
        return bytes((value,))
    rest, parts = value - 127, [127]
    while rest >= 128:
        parts.append(rest % 128 + 128)
        rest //= 128
    return bytes((*parts, rest))


def _field(name: bytes, value: bytes) -> bytes:
    """A header field that no table keeps (RFC 7541, 6.2.2)."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def refusal_frames(stream: int, trailers: Trailers) -> bytes:
    """The answer of a gRPC server that refuses a call, and wants no more of its request."""
    fields = ((b":status", b"200"), (b"content-type", b"application/grpc"), *trailers)
    block = b"".join(_field(name, value) for name, value in fields if len(value) <= _MOST_VALUE_BYTES)
    reset = _frame(_RST_STREAM, 0, stream, _NO_ERROR.to_bytes(4, "big"))
    return _frame(_HEADERS, _END_STREAM | _END_HEADERS, stream, block) + reset


class _Frames:
    """Where one direction is in its frames."""

    __slots__ = ("content", "flags", "head", "in_block", "kind", "left", "padded", "stream")

    def __init__(self, first_bytes: int) -> None:
        self.kind = _NO_FRAME
        self.flags = 0
        self.stream = 0
        self.left = first_bytes
        """Bytes of the present frame that are still to come."""
        self.head = b""
        """What came of the next frame's header."""
        self.in_block = False
        """A header block goes on in the next frame."""
        self.padded = False
        """The length of the padding is still to come."""
        self.content = 0
        """Bytes of the present DATA frame that are still to come, without its padding."""

    def begin(self, head: bytes, at: int) -> int:
        """Reads a frame's header; how many bytes the frame has besides."""
        self.left = (head[at] << 16) | (head[at + 1] << 8) | head[at + 2]
        self.kind, self.flags = head[at + 3], head[at + 4]
        self.stream = int.from_bytes(head[at + 5 : at + 9], "big") & 0x7FFFFFFF
        if self.kind in (_HEADERS, _CONTINUATION):
            self.in_block = not self.flags & _END_HEADERS
        return self.left

    @property
    def between(self) -> bool:
        """Whether another frame may be put in here."""
        return not self.left and not self.head and not self.in_block


class _Call:
    __slots__ = ("held", "is_whole", "left", "prefix")

    def __init__(self) -> None:
        self.prefix = b""
        """What came of the next message's prefix."""
        self.left = 0
        """Bytes of the present message that are still to come."""
        self.held = 0
        self.is_whole = False


class HttpCalls:
    """Of one connection. What comes from each side goes through `from_client` or `from_server` and then on to
    the other; `for_client` is asked after each, and may have something to say in between. `close` at the end.

    A client that goes on after MOST_REFUSALS refusals is `overrun`: nothing more of it is passed on, and it
    is for the owner to end the connection, or to `forgive` what was long ago."""

    __slots__ = (
        *(
            "_answer",
            "_calls",
            "_down",
            "_last",
            "_party",
            "_refusals",
            "_served",
            "_to_client",
            "_to_server",
        ),
        *("_trailers", "_up", "opened", "refused"),
    )

    def __init__(self, party: Party, trailers: Callable[[HubError], Trailers]) -> None:
        """`trailers` of an error: grpc-status and what belongs to it."""
        self._party = party
        self._trailers = trailers
        self._answer: tuple[str, Trailers] | None = None
        self._calls: dict[int, _Call] = {}
        self._up = _Frames(_PREFACE_BYTES)
        self._down = _Frames(0)
        self._last = 0
        self._served = False
        """The server's first frame, its settings, has come."""
        self._to_client: list[bytes] = []
        self._to_server: list[bytes] = []
        self._refusals = 0
        self.opened = 0
        """Calls so far."""
        self.refused: list[HubError] = []
        """For whoever asks, who then empties it."""

    def __len__(self) -> int:
        """Calls that are open."""
        return len(self._calls)

    @property
    def overrun(self) -> bool:
        """Whether too many calls were refused."""
        return self._refusals > MOST_REFUSALS

    def forgive(self) -> None:
        """What was refused so far counts no more."""
        self._refusals = 0

    def goodbye(self, error: HubError) -> bytes:
        """Ends every call, and the connection, with why; empty if the client is in the middle of a frame. It
        is the last that may be said: what the server says is not passed on any more."""
        if not self._down.between:
            return b""
        # A server begins with its settings.
        hello = [] if self._served else [_frame(_SETTINGS, 0, 0, b"")]
        words = [
            *hello,
            *self._to_client,
            *(refusal_frames(stream, self._trailers(error)) for stream in self._calls),
        ]
        last, text = self._last.to_bytes(4, "big"), error.detail.encode()[:_MOST_VALUE_BYTES]
        words.append(_frame(_GOAWAY, 0, 0, last + _ENHANCE_YOUR_CALM.to_bytes(4, "big") + text))
        self._to_client.clear()
        return b"".join(words)

    def close(self) -> None:
        """The connection is gone, with its calls."""
        for stream in tuple(self._calls):
            self._end(stream)

    # From the client.

    def from_client(self, data: bytes) -> bytes:
        """What the server gets of it."""
        up, position, end = self._up, 0, len(data)
        parts: list[bytes] = []
        taken = 0
        while position < end:
            if self._refusals > MOST_REFUSALS:
                return b""
            if up.left:
                size = min(up.left, end - position)
                if up.kind == _DATA:
                    self._read_data(up, data, position, size)
                position += size
                up.left -= size
                if up.left:
                    break
            else:
                if up.head or end - position < _HEAD_BYTES:
                    wanted = _HEAD_BYTES - len(up.head)
                    up.head += data[position : position + wanted]
                    position += wanted
                    if len(up.head) < _HEAD_BYTES:
                        break
                    head, at, up.head = up.head, 0, b""
                else:
                    head, at = data, position
                    position += _HEAD_BYTES
                size = up.begin(head, at)
                self._client_began(up)
                if size:
                    continue
            # A frame is over.
            if up.kind == _RST_STREAM:
                self._end(up.stream)
            if self._to_server and not up.in_block:
                parts += (data[taken:position], *self._to_server)
                self._to_server.clear()
                taken = position
        return b"".join((*parts, data[taken:])) if parts else data

    def _client_began(self, up: _Frames) -> None:
        if up.kind == _DATA:
            up.padded = bool(up.flags & _PADDED)
            up.content = up.left
        elif up.kind == _HEADERS and up.stream > self._last:
            self._last = up.stream
            self.opened += 1
            refusal = self._party.begin_call()
            if refusal is None:
                self._calls[up.stream] = _Call()
            else:
                self._refuse(up.stream, refusal)

    def _read_data(self, up: _Frames, data: bytes, position: int, size: int) -> None:
        """A part of a DATA frame's payload."""
        call = self._calls.get(up.stream)
        if call is None:
            return
        if up.padded:
            up.padded = False
            up.content = max(0, up.content - 1 - data[position])
            position += 1
            size -= 1
        size = min(size, up.content)
        up.content -= size
        end = position + size
        while position < end:
            if call.left:
                read = min(call.left, end - position)
                call.left -= read
                position += read
                call.is_whole = not call.left
                continue
            wanted = _PREFIX_BYTES - len(call.prefix)
            call.prefix += data[position : min(position + wanted, end)]
            position += wanted
            if len(call.prefix) < _PREFIX_BYTES:
                return
            call.left = int.from_bytes(call.prefix[1:], "big")
            call.is_whole = not call.left
            # A compressed one is unpacked before anybody has looked at it.
            unpacked = call.left * _MOST_EXPANSION if call.prefix[0] else call.left
            call.prefix = b""
            held = min(unpacked, max(call.left, self._party.max_message_bytes))
            refusal = self._party.hold(held - call.held)
            if refusal is not None:
                self._refuse(up.stream, refusal)
                return
            call.held = held

    def _refuse(self, stream: int, refusal: HubError) -> None:
        self._end(stream)
        if self._answer is None or self._answer[0] != refusal.detail:
            # Most of a flood are refused for the same.
            self._answer = (refusal.detail, self._trailers(refusal))
        self._to_client.append(refusal_frames(stream, self._answer[1]))
        self._to_server.append(_frame(_RST_STREAM, 0, stream, _CANCEL.to_bytes(4, "big")))
        self.refused.append(refusal)
        self._refusals += 1

    def _end(self, stream: int) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            self._party.hold(-call.held)
            self._party.end_call()

    # From the server.

    def from_server(self, data: bytes) -> bytes:
        """What the client gets of it."""
        down, position, end = self._down, 0, len(data)
        parts: list[bytes] = []
        taken = 0
        while position < end:
            if down.left:
                size = min(down.left, end - position)
                position += size
                down.left -= size
                if down.left:
                    break
            else:
                if down.head or end - position < _HEAD_BYTES:
                    wanted = _HEAD_BYTES - len(down.head)
                    down.head += data[position : position + wanted]
                    position += wanted
                    if len(down.head) < _HEAD_BYTES:
                        break
                    head, at, down.head = down.head, 0, b""
                else:
                    head, at = data, position
                    position += _HEAD_BYTES
                size = down.begin(head, at)
                self._server_began(down)
                if size:
                    continue
            # A frame is over.
            self._served = True
            if self._to_client and not down.in_block:
                parts += (data[taken:position], *self._to_client)
                self._to_client.clear()
                taken = position
        return b"".join((*parts, data[taken:])) if parts else data

    def _server_began(self, down: _Frames) -> None:
        if down.kind not in (_DATA, _HEADERS, _RST_STREAM):
            return
        if down.kind == _RST_STREAM or down.flags & _END_STREAM:
            self._end(down.stream)
        elif down.kind == _DATA:
            call = self._calls.get(down.stream)
            if call is not None and call.is_whole and call.held:
                # It was read, and is being answered.
                self._party.hold(-call.held)
                call.held = 0

    def for_client(self) -> bytes:
        """What waits to be said to the client, if that can be now; else it goes amid what the server says."""
        if not self._to_client or not self._served or not self._down.between:
            return b""
        words = b"".join(self._to_client)
        self._to_client.clear()
        return words

"""An HTTP/2 client that obeys nothing: frames by hand, for callers who behave as no gRPC library does."""

import asyncio
import ssl
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
# Of a server that said nothing else.
FRAME_BYTES = 16_384


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """A header field that is not indexed, its name spelt out (RFC 7541, 6.2.2), each below 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def request_headers(method: str, *more: tuple[str, str]) -> bytes:
    """The header block of a gRPC call."""
    fields = (
        (":method", "POST"),
        (":scheme", "https"),
        (":path", method),
        (":authority", "service.cloudhub.internal"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    )
    return b"".join(_literal(*field) for field in fields)


def message_prefix(size: int) -> bytes:
    """What comes before a gRPC message of so many bytes."""
    return b"\x00" + size.to_bytes(4, "big")


@dataclass
class RawClient:
    """One connection. `run` reads until its end; what came is in `frames` and `ended`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    frames: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    """Kind, flags, stream and payload, but of DATA without the payload."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    windows: dict[int, int] = field(default_factory=dict)
    """What may still be sent, by stream; 0: on all together."""
    initial_window: int = 65_535
    came: asyncio.Condition = field(default_factory=asyncio.Condition)
    _next: int = 1

    @classmethod
    async def connect(cls, host: str, port: int, context: ssl.SSLContext | None) -> "RawClient":
        """Dials and says who it is."""
        name = "service.cloudhub.internal" if context else None
        reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
        client = cls(reader, writer)
        client.windows[0] = 65_535
        writer.write(PREFACE + frame(SETTINGS, 0, 0))
        return client

    async def run(self) -> None:
        """Reads, acknowledges settings and pings, keeps the windows."""
        try:
            while True:
                head = await self.reader.readexactly(9)
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
                payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
                async with self.came:
                    self._take(kind, flags, stream, payload)
                    self.came.notify_all()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.ended.set()
            async with self.came:
                self.came.notify_all()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.frames.append((kind, flags, stream, b"" if kind == DATA else payload))
        if kind == SETTINGS and not flags & ACK:
            for start in range(0, len(payload), 6):
                if int.from_bytes(payload[start : start + 2], "big") == 4:
                    wanted = int.from_bytes(payload[start + 2 : start + 6], "big")
                    for open_stream in self.windows:
                        if open_stream:
                            self.windows[open_stream] += wanted - self.initial_window
                    self.initial_window = wanted
            self.writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.writer.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream in self.windows:
            self.windows[stream] += int.from_bytes(payload, "big")

    def open(self, method: str, *more: tuple[str, str], ends: bool = False) -> int:
        """Begins a call; its stream."""
        stream, self._next = self._next, self._next + 2
        self.windows[stream] = self.initial_window
        flags = END_HEADERS | (END_STREAM if ends else 0)
        self.writer.write(frame(HEADERS, flags, stream, request_headers(method, *more)))
        return stream

    async def send(self, stream: int, data: bytes, *, ends: bool = False) -> bool:
        """Sends as far and as fast as the windows let it; False if the stream or connection ended before."""
        view = memoryview(data)
        while view:
            async with self.came:
                await self.came.wait_for(
                    lambda: self.over(stream) or min(self.windows[0], self.windows[stream]) > 0
                )
            if self.over(stream):
                return False
            size = min(len(view), FRAME_BYTES, self.windows[0], self.windows[stream])
            self.windows[0] -= size
            self.windows[stream] -= size
            last = END_STREAM if ends and size == len(view) else 0
            self.writer.write(frame(DATA, last, stream, bytes(view[:size])))
            view = view[size:]
            await self.writer.drain()
        return True

    def over(self, stream: int) -> bool:
        """Whether the server has ended the stream, or the connection is gone."""
        return self.ended.is_set() or any(
            number == stream and (kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM))
            for kind, flags, number, _ in self.frames
        )

    def count(self, kind: int, stream: int | None = None) -> int:
        """How many frames of a kind came."""
        return sum(one == kind and stream in (None, number) for one, _, number, _ in self.frames)

    async def close(self) -> None:
        """Cuts the connection."""
        self.writer.transport.abort()
        await self.ended.wait()

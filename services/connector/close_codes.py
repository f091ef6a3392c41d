"""One table of close codes: why a link is closed, what the edge is told, whether it should come back.

Codes are RFC 6455's and IANA's registered ones where one fits, else private ones (4000 to 4999).
"""

import enum
from dataclasses import dataclass

from cloudhub.v1 import link_pb2
from services.connector.frames import FrameFault

# RFC 6455 bounds a control frame's payload to 125 bytes, two of which are the code.
_MOST_TEXT_BYTES = 123


@dataclass(frozen=True, slots=True)
class CloseCode:
    """What goes into a close frame. `reconnect` is the advice to the edge."""

    code: int
    text: str
    reconnect: bool

    def with_detail(self, detail: str) -> str:
        """The close frame's text with `detail` appended as far as it fits."""
        text = f"{self.text}: {detail}" if detail else self.text
        return text.encode()[:_MOST_TEXT_BYTES].decode(errors="ignore")


class LinkFault(enum.Enum):
    """A peer's breach of the link protocol, found below the JSON frame; the value is the metric label."""

    WEBSOCKET = "websocket_protocol"
    BINARY = "binary_frame"
    TOO_BIG = "frame_too_big"
    QUIC = "quic_protocol"


_C = link_pb2.CloseReason

CLOSE_CODES: dict[link_pb2.CloseReason.ValueType, CloseCode] = {
    _C.CLOSE_REASON_UNSPECIFIED: CloseCode(1000, "closed by the hub", True),
    _C.CLOSE_REASON_EDGE_CLOSED: CloseCode(1000, "closed by the edge", True),
    _C.CLOSE_REASON_TRANSPORT_ERROR: CloseCode(1011, "transport error", True),
    _C.CLOSE_REASON_PROTOCOL_ERROR: CloseCode(1008, "protocol error", True),
    _C.CLOSE_REASON_KEEPALIVE_TIMEOUT: CloseCode(4008, "no keepalive came in time", True),
    # The node has a newer link: coming back with this one would fight it.
    _C.CLOSE_REASON_SUPERSEDED: CloseCode(4001, "superseded by a newer link of this node", False),
    _C.CLOSE_REASON_EVICTED: CloseCode(4002, "evicted by an operator", True),
    _C.CLOSE_REASON_NODE_DELETED: CloseCode(4003, "the node was deleted", False),
    _C.CLOSE_REASON_REVOKED: CloseCode(4004, "the node was revoked", False),
    _C.CLOSE_REASON_DRAINED: CloseCode(1012, "the connector drains, reconnect", True),
    _C.CLOSE_REASON_DISPATCHER_LOST: CloseCode(1012, "the link's dispatcher was lost, reconnect", True),
    _C.CLOSE_REASON_CONNECTOR_LOST: CloseCode(1012, "the connector was lost, reconnect", True),
    _C.CLOSE_REASON_SHUTDOWN: CloseCode(1012, "the hub restarts, reconnect", True),
    _C.CLOSE_REASON_OVERLOADED: CloseCode(1013, "overloaded, reconnect later", True),
}

FRAME_FAULT_CODES: dict[FrameFault, CloseCode] = {
    FrameFault.ENCODING: CloseCode(1007, "not valid UTF-8", True),
    FrameFault.SYNTAX: CloseCode(1007, "not valid JSON", True),
    FrameFault.DEPTH: CloseCode(1007, "JSON nested too deeply", True),
    FrameFault.NUMBER: CloseCode(1007, "a number beyond a float64", True),
    FrameFault.SURROGATE: CloseCode(1007, "half a surrogate pair", True),
    FrameFault.SHAPE: CloseCode(1008, "not a message", True),
    FrameFault.PROTOBUF: CloseCode(1007, "not a valid protobuf message", True),
}

BINARY_FRAME = CloseCode(1003, "binary frames are not accepted, send JSON text", True)


def close_code(reason: link_pb2.CloseReason.ValueType) -> CloseCode:
    """The table's row; a reason of a newer protocol than ours reads as unspecified."""
    return CLOSE_CODES.get(reason, CLOSE_CODES[_C.CLOSE_REASON_UNSPECIFIED])


def reason_name(reason: link_pb2.CloseReason.ValueType) -> str:
    """`CLOSE_REASON_EDGE_CLOSED` as "edge_closed", for logs and metrics."""
    if reason not in CLOSE_CODES:
        return "unspecified"
    return _C.Name(reason).removeprefix("CLOSE_REASON_").lower()

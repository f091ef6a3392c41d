"""How a QUIC connection ended that the hub did not close. Pure."""

from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicErrorCode

from cloudhub.v1 import link_pb2
from services.connector.close_codes import LinkFault
from services.connector.transport import TransportEnd

_MOST_CHARS = 200
_MOST_CODE = 2**32 - 1  # a field of 32 bits tells of it
_Reason = link_pb2.CloseReason


def transport_end(event: ConnectionTerminated, *, by_peer: bool) -> TransportEnd:
    """What the link is told: the edge closed it, or its connection, or broke QUIC's rules, or fell silent."""
    text, code = event.reason_phrase[:_MOST_CHARS], event.error_code
    if by_peer and event.frame_type is None:
        return TransportEnd(
            _Reason.CLOSE_REASON_EDGE_CLOSED,
            f"{code} {text}".strip(),
            by_edge=True,
            close_code=min(code, _MOST_CODE),
        )
    if by_peer:
        # An error of QUIC's own: no code of the link's.
        detail = f"the peer closed: {code:#x} {text}".strip()
        return TransportEnd(_Reason.CLOSE_REASON_TRANSPORT_ERROR, detail, by_edge=True)
    if text == "Idle timeout":
        return TransportEnd(_Reason.CLOSE_REASON_TRANSPORT_ERROR, "nothing came within the idle timeout")
    return TransportEnd(
        _Reason.CLOSE_REASON_PROTOCOL_ERROR, f"QUIC: {code:#x} {text}".strip(), LinkFault.QUIC.value
    )


def opening_failure(event: ConnectionTerminated, *, by_peer: bool) -> tuple[str, str]:
    """Of a connection that ended before its request: the metric label, and what happened in words."""
    in_tls = event.error_code >= QuicErrorCode.CRYPTO_ERROR
    if by_peer:
        reason = "peer_alert" if in_tls else "peer_closed"
    else:
        reason = "tls_protocol" if in_tls else "quic_protocol"
    return reason, event.reason_phrase[:_MOST_CHARS] or f"code {event.error_code:#x}"

"""How a WebSocket link ended that the hub did not close. Pure."""

from websockets.exceptions import PayloadTooBig
from websockets.server import ServerProtocol

from cloudhub.v1 import link_pb2
from services.connector.close_codes import LinkFault
from services.connector.transport import TransportEnd

_Reason = link_pb2.CloseReason
NO_STATUS = 1005  # what the library makes of a close frame without a code


def connection_lost(error: Exception | None) -> TransportEnd:
    """The TCP connection is gone, or its input has ended; without a close frame, or the link would know."""
    detail = f"connection lost: {error}" if error else "the connection ended without a close frame"
    # Other errors are the network's: the operating system sent again and again, and gave up.
    by_edge = error is None or isinstance(error, (ConnectionResetError, BrokenPipeError))
    return TransportEnd(_Reason.CLOSE_REASON_TRANSPORT_ERROR, detail, by_edge=by_edge)


def closed_by_edge(protocol: ServerProtocol) -> TransportEnd:
    """Its close frame came."""
    close = protocol.close_rcvd
    text = f"{close.code} {close.reason}".strip() if close else ""
    code = int(close.code) if close and close.code != NO_STATUS else 0
    return TransportEnd(_Reason.CLOSE_REASON_EDGE_CLOSED, text, by_edge=True, close_code=code)


def protocol_over(protocol: ServerProtocol) -> TransportEnd:
    """The library ended the protocol: the peer's close frame, or its breach of the protocol."""
    error = protocol.parser_exc
    fault = LinkFault.TOO_BIG if isinstance(error, PayloadTooBig) else LinkFault.WEBSOCKET
    return TransportEnd(_Reason.CLOSE_REASON_PROTOCOL_ERROR, str(error or "closed"), fault.value)


def tls_failed(detail: str) -> TransportEnd:
    """A record could not be read, or none be made."""
    return TransportEnd(_Reason.CLOSE_REASON_TRANSPORT_ERROR, f"TLS: {detail}")

"""What a QUIC listener needs, from files; read at the start, when WebSocket's TLS has found them right."""

from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.connector.quic.connection import CONNECTION_ID_BYTES, ResetTokens
from services.runtime.errors import StartupError

# RFC 9002, 6.2.2. aioquic assumes 0.1 s, and fills narrow wires with copies of handshakes that only wait.
_INITIAL_RTT_SECONDS = 0.333

PROTOCOL = "cloudhub-edge/1"
"""The name that both sides negotiate by ALPN."""


def server_configuration(
    certificate: Path, private_key: Path, *, idle_timeout: float, window_bytes: int
) -> QuicConfiguration:
    """How all connections of a listener are set up. Raises StartupError.

    No session tickets are given out, so nobody resumes a session or sends anything before the handshake.
    """
    own, *chain = x509.load_pem_x509_certificates(certificate.read_bytes())
    key = load_pem_private_key(private_key.read_bytes(), None)
    known = isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    if not known and not (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    ):
        raise StartupError(
            f"the private key {private_key} is of no kind for QUIC: it should be ECDSA P-256 or P-384, "
            "Ed25519, Ed448 or RSA; --quic-listen off does without"
        )
    return QuicConfiguration(
        is_client=False,
        alpn_protocols=[PROTOCOL],
        certificate=own,
        certificate_chain=chain,
        private_key=key,
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=idle_timeout,
        initial_rtt=_INITIAL_RTT_SECONDS,
        max_stream_data=window_bytes,
        # Both streams' allowances; none grows by itself.
        max_data=2 * window_bytes,
    )


def reset_tokens(private_key: Path) -> ResetTokens:
    """Tokens that a connector with the same key makes again after a restart."""
    return ResetTokens(private_key.read_bytes())

"""Which signing requests (CSRs) of nodes are good. Pure.

Of a request only its public key goes into the certificate; its subject has to be the node's all the same, so
that a node that asks for another's certificate by mistake is told.
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

ORGANIZATION = "system:nodes"
NAME_PREFIX = "system:node:"
MOST_REQUEST_BYTES = 8192
# X.509 holds 64 characters in a common name.
MOST_NODE_ID_CHARS = 64 - len(NAME_PREFIX)
_CURVES = ("secp256r1", "secp384r1")


class BadRequest(Exception):
    """The signing request cannot be had; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class NodeKey:
    """The key of a request that was found good."""

    public_key: ec.EllipticCurvePublicKey

    @property
    def der(self) -> bytes:
        """SubjectPublicKeyInfo."""
        return self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_request(data: bytes, node_id: str) -> NodeKey:
    """The key that a request in DER form wants certified for the node. Raises BadRequest."""
    if not data:
        raise BadRequest("the body should be a signing request (PKCS #10, DER); it is empty")
    if len(data) > MOST_REQUEST_BYTES:
        raise BadRequest(f"a signing request has at most {MOST_REQUEST_BYTES} bytes")
    try:
        request = x509.load_der_x509_csr(data)
        subject = list(request.subject)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, x509.InvalidVersion, InvalidSignature, UnsupportedAlgorithm) as error:
        raise BadRequest("the body should be a signing request (PKCS #10, DER) that can be read") from error
    names = [str(one.value) for one in subject if one.oid == NameOID.COMMON_NAME]
    if names != [NAME_PREFIX + node_id]:
        raise BadRequest(
            f"the common name of the signing request should be {NAME_PREFIX}{node_id}, and the only one"
        )
    organizations = [str(one.value) for one in subject if one.oid == NameOID.ORGANIZATION_NAME]
    if organizations != [ORGANIZATION]:
        raise BadRequest(
            f"the organisation of the signing request should be {ORGANIZATION}, and the only one"
        )
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise BadRequest("the key of the signing request should be an elliptic-curve key, P-256 or P-384")
    if not signed:
        raise BadRequest("the signing request is not signed by the key that it names")
    return NodeKey(key)

"""Which signing requests are good: `services.enrolment.signing_request`."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from services.enrolment.signing_request import BadRequest, check_request
from tests.support.enrolment import request_for

KEY = ec.generate_private_key(ec.SECP256R1())
GOOD = request_for(key=KEY)


def altered(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# The integer 1 where version 1 of PKCS #10 has 0.
OF_ANOTHER_VERSION = GOOD.replace(b"\x02\x01\x00", b"\x02\x01\x01", 1)


def test_the_key_of_a_good_request_is_had() -> None:
    found = check_request(GOOD, "edge-1")
    assert found.der == KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_stock_edges_further_names_are_borne() -> None:
    """KubeEdge's edge adds country, locality and province; they go nowhere."""
    more = (
        x509.NameAttribute(NameOID.COUNTRY_NAME, "CN"),
        x509.NameAttribute(NameOID.LOCALITY_NAME, "Hangzhou"),
        x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Zhejiang"),
    )
    assert check_request(request_for(more=more), "edge-1")
    assert check_request(request_for(key=ec.generate_private_key(ec.SECP384R1())), "edge-1")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "empty"),
        (b"x", "can be read"),
        (b"\x30" * 9000, "at most"),
        (GOOD[:-1], "can be read"),
        (GOOD + b"\x00", "can be read"),
        (OF_ANOTHER_VERSION, "can be read"),
        (altered(GOOD, len(GOOD) - 1), "not signed by the key"),
        (request_for("edge-2"), "common name"),
        (request_for(common_name="edge-1"), "common name"),
        (request_for(common_name=""), "common name"),
        (request_for(more=(x509.NameAttribute(NameOID.COMMON_NAME, "system:node:edge-2"),)), "common name"),
        (request_for(organizations=()), "organisation"),
        (request_for(organizations=("cloudhub:operator",)), "organisation"),
        (request_for(organizations=("system:nodes", "cloudhub:operator")), "organisation"),
        (request_for(key=rsa.generate_private_key(65537, 2048)), "elliptic-curve"),
        (request_for(key=ed25519.Ed25519PrivateKey.generate()), "elliptic-curve"),
        (request_for(key=ec.generate_private_key(ec.SECP224R1())), "elliptic-curve"),
    ],
)
def test_a_request_of_every_wrong_kind_is_refused_with_its_fault(data: bytes, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint):
        check_request(data, "edge-1")


@given(st.binary(max_size=400) | st.integers(0, len(GOOD) - 1).map(lambda at: altered(GOOD, at)))
def test_any_other_bytes_are_refused_or_say_the_same(data: bytes) -> None:
    """What is altered outside of what is signed (how the signature is written down) may pass: the key is
    the one that signed."""
    try:
        found = check_request(data, "edge-1")
    except BadRequest:
        return
    assert found.der == KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

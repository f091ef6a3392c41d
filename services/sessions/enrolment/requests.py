"""Requests of enrolment checked and turned into records; a fault names its field."""

import re

from google.protobuf.timestamp_pb2 import Timestamp

from cloudhub.v1 import enrolment_pb2
from services.runtime.errors import InvalidRequest
from services.runtime.names import (
    check_certificate_serial,
    check_instance_id,
    check_label,
    check_node_id,
    check_project_id,
    check_version,
)
from services.sessions.enrolment.records import TokenScope, Wanted
from services.sessions.records import Replica
from services.sessions.requests import MOST_INTEGER

MOST_USES = 100_000
DEFAULT_SECONDS = 86_400.0
MOST_SECONDS = 366 * 86_400.0
_PATTERN = re.compile(r"[a-z0-9.*?-]{1,253}")
_TOKEN_ID = re.compile(r"[0-9a-f-]{1,36}")
_SHA256_BYTES = 32


def _milliseconds(field: str, value: Timestamp) -> int:
    found = value.seconds * 1000 + value.nanos // 1_000_000
    if not 0 < found <= MOST_INTEGER:
        raise InvalidRequest(field, "should be an instant after 1970")
    return found


def _serial(field: str, text: str) -> str:
    complaint = check_certificate_serial(text)
    if complaint or not text:
        raise InvalidRequest(field, complaint or "should be a certificate's serial number, it is empty")
    return text


def node_id(text: str) -> str:
    """A checked `node_id`."""
    complaint = check_node_id(text)
    if complaint:
        raise InvalidRequest("node_id", complaint)
    return text


def process(request: enrolment_pb2.RenewPresenceRequest) -> Replica:
    """The process of a RenewPresence."""
    for field, complaint in (
        ("instance_id", check_instance_id(request.instance_id)),
        ("name", check_label(request.name)),
        ("address", check_label(request.address)),
        ("version", check_version(request.version)),
    ):
        if complaint:
            raise InvalidRequest(field, complaint)
    return Replica(
        request.instance_id, request.name, request.address, service="enrolment", version=request.version
    )


def wanted(request: enrolment_pb2.IssueCertificateRequest) -> Wanted:
    """The certificate of an IssueCertificate."""
    right = request.WhichOneof("right")
    if right is None:
        raise InvalidRequest("token", "should be a join token, or former_serial that of a certificate")
    if right == "former_serial":
        _serial("former_serial", request.former_serial)
    if len(request.key_sha256) != _SHA256_BYTES:
        raise InvalidRequest(
            "key_sha256", f"should have {_SHA256_BYTES} bytes; it has {len(request.key_sha256)}"
        )
    complaint = check_label(request.peer_address)
    if complaint:
        raise InvalidRequest("peer_address", complaint)
    return Wanted(
        node_id=node_id(request.node_id),
        serial=_serial("serial", request.serial),
        not_before_ms=_milliseconds("not_before", request.not_before),
        not_after_ms=_milliseconds("not_after", request.not_after),
        key_sha256=request.key_sha256.hex(),
        peer_address=request.peer_address,
    )


def scope(request: enrolment_pb2.CreateTokenRequest, now_ms: int) -> TokenScope:
    """What a CreateToken asks for."""
    pattern = request.node_pattern or "*"
    if not _PATTERN.fullmatch(pattern):
        raise InvalidRequest(
            "node_pattern",
            "should be a node id, in which '*' stands for any characters and '?' for one; "
            f"got {pattern[:80]!r}",
        )
    if request.project_id:
        complaint = check_project_id(request.project_id)
        if complaint:
            raise InvalidRequest("project_id", complaint)
    if request.uses > MOST_USES:
        raise InvalidRequest("uses", f"should be at most {MOST_USES}; got {request.uses}")
    seconds = request.valid_seconds or DEFAULT_SECONDS
    if not 1 <= seconds <= MOST_SECONDS:
        raise InvalidRequest(
            "valid_seconds", f"should be from 1 to {MOST_SECONDS:.0f} (366 days); got {seconds:g}"
        )
    # The JWT tells whole seconds: the row and it end together.
    expires_at_ms = (now_ms + int(seconds * 1000)) // 1000 * 1000
    return TokenScope(pattern, request.project_id, request.uses or 1, now_ms, expires_at_ms)


def token_id(text: str) -> str:
    """A checked `token_id`."""
    if not _TOKEN_ID.fullmatch(text):
        raise InvalidRequest("token_id", "should be a token's id as ListTokens shows it")
    return text

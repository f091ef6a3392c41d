"""What is answered to which request: `/ca.crt`, and `/edge.crt` by join token or by certificate.

Each request for a certificate has a trace; neither a token nor a signing request gets into it.
"""

import datetime
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.trace import Span

from cloudhub.v1 import enrolment_pb2 as pb
from services.enrolment.authority import Authority, RenewedAuthority, Validity, sign, validity_of
from services.enrolment.signing_request import (
    MOST_NODE_ID_CHARS,
    NAME_PREFIX,
    ORGANIZATION,
    BadRequest,
    check_request,
)
from services.runtime.clock import Clock
from services.runtime.errors import HubError
from services.runtime.http import Answer, Request, refused
from services.runtime.names import check_node_id
from services.runtime.tracing import Tracing, fail, traceparent_of

CERTIFICATE_TYPE = "application/pkix-cert"
_RETRY_SECONDS = "5"
_TOO_OFTEN_SECONDS = "300"
# Refusals that say "not you"; the others say "prove who you are".
_FORBIDDEN = frozenset(
    {pb.ENROLMENT_REFUSAL_REASON_TOKEN_OF_OTHERS, pb.ENROLMENT_REFUSAL_REASON_NODE_REVOKED}
)

IssueCertificate = Callable[[pb.IssueCertificateRequest, str], Awaitable[pb.IssueCertificateResponse]]


@dataclass(frozen=True, slots=True)
class Shown:
    """The certificate that a client showed, verified by TLS."""

    node_id: str
    """Empty if it is no node's."""
    serial: str


def shown_by(certificate: bytes | None) -> Shown | None:
    """What a verified certificate in DER form says of its owner."""
    if not certificate:
        return None
    try:
        read = x509.load_der_x509_certificate(certificate)
        subject = [(one.oid, str(one.value)) for one in read.subject]
    except (ValueError, x509.InvalidVersion):
        # OpenSSL takes names that say nothing to us.
        return Shown("", "")
    names = [value for oid, value in subject if oid == NameOID.COMMON_NAME]
    organizations = [value for oid, value in subject if oid == NameOID.ORGANIZATION_NAME]
    is_node = organizations == [ORGANIZATION] and len(names) == 1 and names[0].startswith(NAME_PREFIX)
    return Shown(names[0].removeprefix(NAME_PREFIX) if is_node else "", f"{read.serial_number:x}")


class Handler:
    """Answers requests. `issue` asks sessions whether a certificate may be had, under the `traceparent`
    given; it raises HubError."""

    def __init__(
        self,
        authority: RenewedAuthority,
        issue: IssueCertificate,
        clock: Clock,
        tracing: Tracing,
        certificate_seconds: float,
    ) -> None:
        self._authority = authority
        self._issue = issue
        self._clock = clock
        self._tracing = tracing
        self._seconds = certificate_seconds

    async def answer(self, request: Request, certificate: bytes | None, address: str) -> Answer:
        """The answer to a request from `address` (a host), whose client showed this certificate."""
        if request.path == "/ca.crt":
            return _method_refusal(request) or Answer(
                200, "ca", self._authority.present.der, CERTIFICATE_TYPE
            )
        if request.path == "/edge.crt":
            return _method_refusal(request) or await self._traced(request, certificate, address)
        return refused(404, "path", "there are /ca.crt and /edge.crt")

    async def _traced(self, request: Request, certificate: bytes | None, address: str) -> Answer:
        span = self._tracing.start("enrol", attributes={"network.peer.address": address})
        answer: Answer | None = None
        try:
            answer = await self._edge(request, certificate, address, span)
            return answer
        finally:
            _end(span, answer)

    async def _edge(self, request: Request, certificate: bytes | None, address: str, span: Span) -> Answer:
        node_id = request.header("nodename") or ""
        complaint = check_node_id(node_id)
        if not complaint and len(node_id) > MOST_NODE_ID_CHARS:
            complaint = f"should be at most {MOST_NODE_ID_CHARS} characters for a certificate"
        if complaint:
            return refused(400, "node_id", f"the header NodeName {complaint}")
        wanted = pb.IssueCertificateRequest(node_id=node_id, peer_address=address)
        proof_refused = _take_right(request, shown_by(certificate), wanted)
        if proof_refused:
            return proof_refused
        try:
            key = check_request(request.body, node_id)
        except BadRequest as error:
            return refused(400, "signing_request", str(error))
        authority, serial = self._authority.present, x509.random_serial_number()
        validity = validity_of(authority, self._clock.wall_ms(), self._seconds)
        wanted.serial = f"{serial:x}"
        wanted.not_before.CopyFrom(Timestamp(seconds=int(validity.not_before.timestamp())))
        wanted.not_after.CopyFrom(Timestamp(seconds=int(validity.not_after.timestamp())))
        wanted.key_sha256 = hashlib.sha256(key.der).digest()
        right = wanted.WhichOneof("right") or ""
        span.set_attributes({"cloudhub.node.id": node_id, "cloudhub.enrolment.right": right})
        issuing = self._tracing.start("issue", traceparent_of(span), attributes={"cloudhub.node.id": node_id})
        answer: Answer | None = None
        try:
            verdict = await self._ask(wanted, traceparent_of(issuing))
            if isinstance(verdict, Answer):
                answer = verdict
                return answer
            if verdict.serial:
                serial, validity = int(verdict.serial, 16), _validity(verdict, authority)
            issuing.set_attribute("cloudhub.certificate.serial", f"{serial:x}")
            span.set_attribute("cloudhub.certificate.serial", f"{serial:x}")
            answer = Answer(200, right, sign(authority, node_id, key, serial, validity), CERTIFICATE_TYPE)
            return answer
        finally:
            _end(issuing, answer)

    async def _ask(
        self, wanted: pb.IssueCertificateRequest, traceparent: str
    ) -> Answer | pb.IssueCertificateResponse:
        """What sessions grants, or why it does not let a certificate be signed."""
        try:
            response = await self._issue(wanted, traceparent)
        except HubError as error:
            if not error.retryable:
                raise
            return refused(503, "sessions", "the hub cannot answer now", Retry_After=_RETRY_SECONDS)
        if not response.HasField("refusal"):
            return response
        refusal = response.refusal
        name = pb.EnrolmentRefusalReason.Name(refusal.reason).removeprefix("ENROLMENT_REFUSAL_REASON_")
        if refusal.reason == pb.ENROLMENT_REFUSAL_REASON_NODE_TOO_OFTEN:
            return refused(429, name.lower(), refusal.detail, Retry_After=_TOO_OFTEN_SECONDS)
        return refused(403 if refusal.reason in _FORBIDDEN else 401, name.lower(), refusal.detail)


def _validity(granted: pb.IssueCertificateResponse, authority: Authority) -> Validity:
    """Of a certificate that was granted before; the CA may be another by now."""
    ca = authority.certificate
    return Validity(
        max(granted.not_before.ToDatetime(datetime.UTC), ca.not_valid_before_utc),
        min(granted.not_after.ToDatetime(datetime.UTC), authority.not_after),
    )


def _end(span: Span, answer: Answer | None) -> None:
    """Ends a span with what came of it; without an answer it failed or was cut."""
    if answer is None:
        span.set_attribute("cloudhub.outcome", "failed")
        fail(span, "there was no answer")
    elif answer.status == 200:
        span.set_attribute("cloudhub.outcome", "issued")
    else:
        span.set_attribute("cloudhub.outcome", "refused" if answer.status < 500 else "failed")
        span.set_attribute("cloudhub.reason", answer.outcome)
        fail(span, answer.body.decode().strip())
    span.end()


def _method_refusal(request: Request) -> Answer | None:
    if request.method == "GET":
        return None
    return refused(405, "method", "the method should be GET", Allow="GET")


def _take_right(request: Request, shown: Shown | None, wanted: pb.IssueCertificateRequest) -> Answer | None:
    """Puts the client's proof into `wanted`, or says what is wrong with it. A token goes before."""
    if any(name == "authorization" for name, _ in request.headers):
        scheme, _, token = (request.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return refused(401, "token_malformed", "the header Authorization should be: Bearer <token>")
        token = token.strip()
        if not token.isascii():
            return refused(401, "token_malformed", "the token is no join token of a hub")
        wanted.token = token
        return None
    if shown is None:
        return refused(
            401,
            "nothing_shown",
            "show a join token (Authorization: Bearer <token>), or the node's present certificate",
            WWW_Authenticate="Bearer",
        )
    if shown.node_id != wanted.node_id:
        whose = f"of node {shown.node_id!r}" if shown.node_id else "no node's"
        return refused(
            401, "certificate_node", f"the certificate shown is {whose}, NodeName says {wanted.node_id}"
        )
    wanted.former_serial = shown.serial
    return None

"""EnrolmentAdmin: join tokens, certificates and revocations, for operators."""

import asyncio
import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloudhub.v1 import enrolment_pb2, enrolment_pb2_grpc
from services.runtime.clock import Clock
from services.runtime.errors import InvalidRequest, NotFound, Refused
from services.runtime.ids import new_id
from services.runtime.logs import get_log
from services.sessions.enrolment import requests
from services.sessions.enrolment.record_sql import EnrolmentRecord
from services.sessions.enrolment.records import Certificate, JoinToken
from services.sessions.metrics import Metrics
from services.sessions.notices import Notices
from services.sessions.records import Eviction
from services.sessions.registry import Registry
from services.sessions.requests import MOST_INTEGER, prefix
from services.sessions.wire import timestamp

DEFAULT_PAGE_SIZE = 100
MOST_PAGE_SIZE = 1000

Context = grpc.aio.ServicerContext[Any, Any]
log = get_log(__name__)


class EnrolmentAdminServicer(enrolment_pb2_grpc.EnrolmentAdminServicer):
    """`authority`: the file of the CA whose hash join tokens carry; it is read for each token."""

    def __init__(
        self,
        record: EnrolmentRecord,
        registry: Registry,
        notices: Notices,
        metrics: Metrics,
        clock: Clock,
        authority: Path,
    ) -> None:
        self._record = record
        self._registry = registry
        self._notices = notices
        self._metrics = metrics
        self._clock = clock
        self._authority = authority

    async def CreateToken(
        self, request: enrolment_pb2.CreateTokenRequest, context: Context
    ) -> enrolment_pb2.CreateTokenResponse:
        scope = requests.scope(request, self._clock.wall_ms())
        authority_hash = await asyncio.to_thread(_hash_of, self._authority)
        with self._metrics.transaction("create_token"):
            # Ids of tokens are told to operators and stand in logs; the secret is another part of the JWT.
            secret_part, made = await self._record.create_token(new_id(), scope)
        log.info("token.created", token_id=made.token_id, node_pattern=scope.node_pattern, uses=scope.uses)
        return enrolment_pb2.CreateTokenResponse(
            join_token=f"{authority_hash}.{secret_part}", token=_token_message(made)
        )

    async def ListTokens(
        self, request: enrolment_pb2.ListTokensRequest, context: Context
    ) -> enrolment_pb2.ListTokensResponse:
        size = request.page_size or MOST_PAGE_SIZE
        if size > MOST_PAGE_SIZE:
            raise InvalidRequest("page_size", f"should be at most {MOST_PAGE_SIZE}; got {size}")
        found = await self._record.tokens(_tokens_start(request.page_token), size + 1)
        shown = found[:size]
        return enrolment_pb2.ListTokensResponse(
            tokens=[_token_message(token) for token in shown],
            next_page_token=_tokens_token(shown[-1]) if len(found) > size else "",
        )

    async def RevokeToken(
        self, request: enrolment_pb2.RevokeTokenRequest, context: Context
    ) -> enrolment_pb2.RevokeTokenResponse:
        token_id = requests.token_id(request.token_id)
        with self._metrics.transaction("revoke_token"):
            found = await self._record.revoke_token(token_id)
        if not found:
            raise NotFound("UNKNOWN_TOKEN", f"there is no token {token_id}", token_id=token_id)
        log.info("token.revoked", token_id=token_id)
        return enrolment_pb2.RevokeTokenResponse(token=_token_message(found))

    async def ListCertificates(
        self, request: enrolment_pb2.ListCertificatesRequest, context: Context
    ) -> enrolment_pb2.ListCertificatesResponse:
        wanted = prefix(request.node_id_prefix)
        size = request.page_size or DEFAULT_PAGE_SIZE
        if size > MOST_PAGE_SIZE:
            raise InvalidRequest("page_size", f"should be at most {MOST_PAGE_SIZE}; got {size}")
        found = await self._record.certificates(wanted, _page_start(wanted, request.page_token), size + 1)
        shown = found[:size]
        return enrolment_pb2.ListCertificatesResponse(
            certificates=[_certificate_message(one) for one in shown],
            next_page_token=(
                _page_token(wanted, shown[-1].node_id, shown[-1].serial) if len(found) > size else ""
            ),
        )

    async def RevokeNode(
        self, request: enrolment_pb2.RevokeNodeRequest, context: Context
    ) -> enrolment_pb2.RevokeNodeResponse:
        node_id, now_ms = requests.node_id(request.node_id), self._clock.wall_ms()
        with self._metrics.transaction("revoke_node"):
            if not request.may_be_unknown:
                await self._check_known(node_id)
            # First no new session, then the end of the present one: there is no gap between.
            await self._record.revoke_node(node_id, now_ms)
            committed = await self._registry.evict(node_id, 0, now_ms, revoked=True)
        self._notices.tell(committed)
        cut = committed.results[0].eviction in (Eviction.ASKED, Eviction.CLOSED)
        log.info("node.revoked", node_id=node_id, was_connected=cut)
        return enrolment_pb2.RevokeNodeResponse(was_connected=cut)

    async def ListRevokedNodes(
        self, request: enrolment_pb2.ListRevokedNodesRequest, context: Context
    ) -> enrolment_pb2.ListRevokedNodesResponse:
        wanted = prefix(request.node_id_prefix)
        size = request.page_size or DEFAULT_PAGE_SIZE
        if size > MOST_PAGE_SIZE:
            raise InvalidRequest("page_size", f"should be at most {MOST_PAGE_SIZE}; got {size}")
        found = await self._record.revoked_nodes(wanted, _page_start(wanted, request.page_token)[0], size + 1)
        shown = found[:size]
        return enrolment_pb2.ListRevokedNodesResponse(
            nodes=[
                enrolment_pb2.RevokedNode(
                    node_id=one.node_id,
                    revoked_at=timestamp(one.revoked_at_ms),
                    enrolled_since=one.enrolled_since,
                )
                for one in shown
            ],
            next_page_token=_page_token(wanted, shown[-1].node_id) if len(found) > size else "",
        )

    async def ReinstateNode(
        self, request: enrolment_pb2.ReinstateNodeRequest, context: Context
    ) -> enrolment_pb2.ReinstateNodeResponse:
        node_id = requests.node_id(request.node_id)
        with self._metrics.transaction("reinstate_node"):
            revoked = await self._record.reinstate_node(node_id)
        if not revoked:
            await self._check_known(node_id)
            raise NotFound("NOT_REVOKED", f"node {node_id} is not revoked", node_id=node_id)
        log.info("node.reinstated", node_id=node_id)
        return enrolment_pb2.ReinstateNodeResponse()

    async def _check_known(self, node_id: str) -> None:
        """Raises NotFound for a node that nothing is on record of: its id is misspelt, as a rule."""
        if not await self._record.is_on_record(node_id) and await self._registry.get(node_id) is None:
            raise NotFound(
                "UNKNOWN_NODE",
                f"the hub knows no node {node_id}: it never enrolled and never had a session",
                node_id=node_id,
            )


def _hash_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the first certificate in the file, in DER form. Raises Refused."""
    try:
        first = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except OSError as error:
        raise Refused(
            "NO_ENROLMENT_CA", f"the CA certificate {path} cannot be read: {error.strerror}"
        ) from error
    except (ValueError, x509.InvalidVersion) as error:
        raise Refused("NO_ENROLMENT_CA", f"the CA certificate {path} is not in PEM form") from error
    return hashlib.sha256(first.public_bytes(Encoding.DER)).hexdigest()


def _token_message(token: JoinToken) -> enrolment_pb2.Token:
    scope = token.scope
    return enrolment_pb2.Token(
        token_id=token.token_id,
        node_pattern=scope.node_pattern,
        project_id=scope.project_id,
        uses=scope.uses,
        uses_left=token.uses_left,
        created_at=timestamp(scope.created_at_ms),
        expires_at=timestamp(scope.expires_at_ms),
        revoked=token.revoked,
    )


def _certificate_message(certificate: Certificate) -> enrolment_pb2.NodeCertificate:
    return enrolment_pb2.NodeCertificate(
        node_id=certificate.node_id,
        serial=certificate.serial,
        not_before=timestamp(certificate.not_before_ms),
        not_after=timestamp(certificate.not_after_ms),
        issued_at=timestamp(certificate.issued_at_ms),
        token_id=certificate.token_id,
        peer_address=certificate.peer_address,
        revoked=certificate.revoked,
    )


def _page_token(wanted: str, node_id: str, serial: str = "") -> str:
    return base64.urlsafe_b64encode(f"{wanted}/{node_id}/{serial}".encode()).decode()


def _page_start(wanted: str, token: str) -> tuple[str, str]:
    """Node and serial after which the page begins. Raises InvalidRequest for a token of another prefix."""
    if not token:
        return "", ""
    try:
        of, node_id, serial = (
            base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").split("/")
        )
    except (binascii.Error, ValueError):
        of, node_id, serial = "/", "", ""
    if of != wanted or not node_id.isprintable() or not serial.isprintable():
        raise InvalidRequest("page_token", "should be the next_page_token of a call with the same filter")
    return node_id, serial


def _tokens_token(last: JoinToken) -> str:
    return base64.urlsafe_b64encode(f"{last.scope.created_at_ms}/{last.token_id}".encode()).decode()


def _tokens_start(token: str) -> tuple[int, str] | None:
    """When the token was made after which the page begins, and its id. Raises InvalidRequest."""
    if not token:
        return None
    try:
        made, _, token_id = (
            base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").partition("/")
        )
        made_at_ms = int(made)
    except (binascii.Error, ValueError):
        made_at_ms, token_id = -1, ""
    if not 0 <= made_at_ms <= MOST_INTEGER or not token_id.isprintable():
        raise InvalidRequest("page_token", "should be the next_page_token of a former call")
    return made_at_ms, token_id

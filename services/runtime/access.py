"""Who calls, whether that caller may, and the audit log of it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
from prometheus_client import Counter

from services.runtime.clock import Clock
from services.runtime.errors import Forbidden, HubError, Unauthenticated
from services.runtime.logs import get_log
from services.runtime.roles import ALLOWED, Role, allowed, identity_of, is_admin

AUDIT_LOG = "cloudhub.audit"
REFUSALS = ("CERTIFICATE_MISSING", "CERTIFICATE_EXPIRED", "CERTIFICATE_WITHOUT_ROLE", "ROLE_FORBIDDEN")
_log = get_log(AUDIT_LOG)
# Whatever the lowest level of other lines is.
logging.getLogger(AUDIT_LOG).setLevel(logging.INFO)
# Of a request with very many nodes, or with text that is no node id.
_MOST_NODES = 16
_MOST_CHARACTERS = 128

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Call:
    """One call, from its start to its audit line."""

    method: str
    caller: str
    address: str
    began_at: float
    nodes: tuple[str, ...] = ()
    ended: bool = False


class Access:
    """Of one server. Without `authenticates` every caller may do everything; calls are audited as well."""

    def __init__(self, clock: Clock, refused: Counter | None = None, *, authenticates: bool) -> None:
        self._clock = clock
        self._refused = refused
        self._authenticates = authenticates

    def admit(self, method: str, context: Context) -> Call | None:
        """What to give to `ended` when the call is over; None if nobody wants to know. Raises Unauthenticated
        or Forbidden after it was audited."""
        call = Call(method, "", "", self._clock.monotonic())
        if self._authenticates:
            try:
                self._check(call, context)
            except HubError as error:
                call.address = unquote(context.peer())
                self.ended(call, error.status.name, error.reason)
                if self._refused is not None:
                    self._refused.labels(error.reason).inc()
                raise
        if not is_admin(method):
            return None
        call.address = unquote(context.peer())
        return call

    def _check(self, call: Call, context: Context) -> None:
        found: Mapping[str, Any] = context.auth_context()
        certificates = found.get("x509_pem_cert") or ()
        if not certificates:
            raise Unauthenticated("CERTIFICATE_MISSING", "the connection has no client certificate")
        identity = identity_of(bytes(next(iter(certificates))))
        call.caller = identity.name
        if identity.not_after * 1000 <= self._clock.wall_ms():
            # The connection was made before, and goes on with the calls that it has.
            raise Unauthenticated(
                "CERTIFICATE_EXPIRED",
                f"the certificate of {identity.name} has expired",
            )
        if allowed(call.method, identity.roles):
            return
        if not identity.roles:
            raise Forbidden(
                "CERTIFICATE_WITHOUT_ROLE",
                f"the certificate of {identity.name} has no role: its organisation should be one of "
                + ", ".join(role.value for role in Role if role is not Role.EDGE),
            )
        wanted = "" if Role.EDGE in identity.roles else _names(ALLOWED.get(call.method, frozenset()))
        raise Forbidden(
            "ROLE_FORBIDDEN",
            f"a certificate with the role {_names(identity.roles)} may not call {call.method}"
            + (f"; {wanted} may" if wanted else ""),
            role=_names(identity.roles),
            method=call.method,
        )

    def asked(self, call: Call, request: Any) -> None:
        """Notes which nodes a request is about."""
        nodes = [getattr(request, name, "") for name in ("node_id", "node_id_prefix")]
        nodes = [*(node for node in nodes if node), *getattr(request, "node_ids", ())]
        call.nodes = tuple(node[:_MOST_CHARACTERS] for node in nodes[:_MOST_NODES])

    def ended(self, call: Call, status: str, reason: str = "") -> None:
        """Writes the audit line; only the first of several for one call."""
        if call.ended:
            return
        call.ended = True
        refused = status in ("UNAUTHENTICATED", "PERMISSION_DENIED")
        _log.log(
            logging.WARNING if refused else logging.INFO,
            "call.refused" if refused else "admin.call",
            logger=AUDIT_LOG,
            caller=call.caller or "unauthenticated",
            address=call.address,
            method=call.method,
            nodes=list(call.nodes),
            status=status,
            reason=reason,
            seconds=round(self._clock.monotonic() - call.began_at, 4),
        )


def _names(roles: frozenset[Role]) -> str:
    """For people: the last part of each organisation; an edge's is its own."""
    return ", ".join(sorted(role.name.lower() for role in roles))

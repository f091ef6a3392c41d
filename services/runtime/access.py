"""Who calls, whether that caller may, and the audit log of it."""

import logging
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
from prometheus_client import Counter

from services.runtime.callers import REASONS, Callers, client_address
from services.runtime.clock import Clock
from services.runtime.errors import Forbidden, Unauthenticated, Unavailable
from services.runtime.logs import get_log
from services.runtime.names import shown
from services.runtime.roles import ALLOWED, Role, allowed, is_admin

AUDIT_LOG = "cloudhub.audit"
REFUSALS = (*REASONS, "CERTIFICATE_WITHOUT_ROLE", "ROLE_FORBIDDEN")
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
    """Of one server. Without `callers` every caller may do everything; calls are audited as well."""

    def __init__(self, clock: Clock, refused: Counter | None = None, callers: Callers | None = None) -> None:
        self._clock = clock
        self._refused = refused
        self._callers = callers

    def admit(self, method: str, context: Context) -> Call | None:
        """What to give to `ended` when the call is over; None if nobody wants to know. Raises Unauthenticated
        or Forbidden after it was audited, Unavailable for a caller who is gone."""
        call = Call(method, "", "", self._clock.monotonic())
        if self._callers is not None:
            try:
                self._check(call, self._callers, unquote(context.peer()))
            except (Unauthenticated, Forbidden) as error:
                self.ended(call, error.status.name, error.reason)
                if self._refused is not None:
                    self._refused.labels(error.reason).inc()
                raise
        if not is_admin(method):
            return None
        call.address = call.address or client_address(unquote(context.peer()))
        return call

    def _check(self, call: Call, callers: Callers, peer: str) -> None:
        found = callers.at(peer)
        if found is None:
            # The call was read before the end of its connection was seen. Nobody hears this.
            raise Unavailable("CONNECTION_GONE", "the connection of the call is closed")
        call.address = found.address
        if found.refusal is not None or found.identity is None:
            # Such connections are another server's; none of them ends up here.
            raise found.refusal or Unauthenticated("CERTIFICATE_MISSING", "the caller is not known")
        identity = found.identity
        call.caller = identity.name
        if identity.not_after * 1000 <= self._clock.wall_ms():
            # The connection was made before, and goes on with the calls that it has.
            raise Unauthenticated(
                "CERTIFICATE_EXPIRED",
                f"the certificate of {shown(identity.name)} has expired",
            )
        if allowed(call.method, identity.roles):
            return
        if not identity.roles:
            raise Forbidden(
                "CERTIFICATE_WITHOUT_ROLE",
                f"the certificate of {shown(identity.name)} has no role: its organisation should be one of "
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

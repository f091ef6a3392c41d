"""Who calls, whether that caller may, and the audit log of it."""

import logging
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc

from services.runtime import caller_shares
from services.runtime.callers import REASONS, Caller, Callers, client_address, printable, without_role
from services.runtime.clock import Clock
from services.runtime.errors import Forbidden, Unauthenticated, Unavailable
from services.runtime.logs import get_log
from services.runtime.names import shown
from services.runtime.refusals import AUDIT_LOG, Refusals
from services.runtime.roles import ALLOWED, Role, allowed, is_admin

REFUSALS = (*REASONS, "CERTIFICATE_WITHOUT_ROLE", "ROLE_FORBIDDEN", *caller_shares.REASONS)
_log = get_log(AUDIT_LOG)
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

    def __init__(self, clock: Clock, refusals: Refusals, callers: Callers | None = None) -> None:
        self._clock = clock
        self._refusals = refusals
        self._callers = callers

    def admit(self, method: str, context: Context) -> Call | None:
        """What to give to `ended` when the call is over; None if nobody wants to know. Raises Unauthenticated
        or Forbidden after it was audited, Unavailable for a caller who is gone."""
        call = Call(method, "", "", self._clock.monotonic())
        if self._callers is not None:
            found = self._callers.at(unquote(context.peer()))
            if found is None:
                # The call was read before the end of its connection was seen. Nobody hears this.
                raise Unavailable("CONNECTION_GONE", "the connection of the call is closed")
            try:
                self._check(call, found)
            except (Unauthenticated, Forbidden) as error:
                self._refusals.tell(found, error, method=printable(method))
                raise
        if not is_admin(method):
            return None
        call.address = call.address or client_address(unquote(context.peer()))
        return call

    def _check(self, call: Call, found: Caller) -> None:
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
        # Those without one, and edges, are another server's too.
        nothing = without_role(identity)
        if nothing is not None:
            raise nothing
        wanted = _names(ALLOWED.get(call.method, frozenset()))
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

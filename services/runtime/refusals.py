"""Calls that are refused for who makes them, or for what that caller has under way: counted, and on the
record in lines whose number nobody can drive up."""

import logging
from typing import Any

from prometheus_client import Counter

from services.runtime.callers import Caller, printable
from services.runtime.errors import HubError, Unauthenticated
from services.runtime.failure_log import FailureLog
from services.runtime.logs import get_log

AUDIT_LOG = "cloudhub.audit"
_log = get_log(AUDIT_LOG)
# Whatever the lowest level of other lines is.
logging.getLogger(AUDIT_LOG).setLevel(logging.INFO)
BURST_LINES = 10
"""Per caller, reason and interval; those that follow are told together."""


class Refusals:
    """Of one server, which closes it. A caller is whoever a certificate names; strangers, who can show any
    name, are told apart by their networks."""

    def __init__(self, counter: Counter | None = None) -> None:
        self._counter = counter
        self._lines = FailureLog(_log, "call.refused", burst=BURST_LINES, level=logging.WARNING)

    def tell(self, caller: Caller, refusal: HubError, calls: int = 1, **facts: Any) -> None:
        """A call, or several at once; `facts` are for the line."""
        name = printable(caller.identity.name) if caller.identity else ""
        proven = name if caller.refusal is None or not isinstance(caller.refusal, Unauthenticated) else ""
        if not proven:
            facts |= {"shown": name, "issuer": caller.issuer}
        if self._counter is not None:
            self._counter.labels(refusal.reason).inc(calls)
        self._lines.add(
            refusal.reason,
            by=proven or caller.network,
            times=calls,
            logger=AUDIT_LOG,
            caller=proven or "unauthenticated",
            address=caller.address,
            status=refusal.status.name,
            **{"detail": refusal.detail, **facts},
        )

    def close(self) -> None:
        """Tells what is untold."""
        self._lines.close()

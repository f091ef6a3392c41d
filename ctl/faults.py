"""Why a command failed: a sentence that says what to try, and an exit code.

CtlFault            knows its exit code; raised with a sentence for people
fault_of(error)     the CtlFault of a failed gRPC call
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import grpc

from services.runtime.callers import REASONS as CERTIFICATE_REASONS
from services.runtime.names import shown
from services.runtime.rpc import NO_ANSWER, error_info


class ExitCode(IntEnum):
    """What the process ends with (docs/cloudhubctl.md)."""

    OK = 0
    FAILED = 1
    """The hub refused, or what was asked came to nothing for some node."""
    USAGE = 2
    """A flag, a file, a manifest or an argument is wrong; nothing was changed."""
    UNREACHABLE = 3
    """A service or its database does not answer; the outcome is unknown, asking again is safe."""
    NOT_FOUND = 4
    TIMED_OUT = 5
    """`--wait` came to its end; the messages go on."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141


_NAMED = 5
UNKNOWN = ("NODE_UNKNOWN", "UNKNOWN_NODE")
"""Reasons of the hub: a dispatcher's, and that of sessions."""


_STATUS = {
    ExitCode.OK: grpc.StatusCode.OK,
    ExitCode.FAILED: grpc.StatusCode.FAILED_PRECONDITION,
    ExitCode.USAGE: grpc.StatusCode.INVALID_ARGUMENT,
    ExitCode.UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    ExitCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ExitCode.TIMED_OUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    ExitCode.INTERRUPTED: grpc.StatusCode.CANCELLED,
    ExitCode.BROKEN_PIPE: grpc.StatusCode.ABORTED,
}


class CtlFault(Exception):
    """The command cannot be carried out; the text says why and what to try."""

    def __init__(self, code: ExitCode, text: str, reason: str = "", status: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        """That of the hub, for programs: `NODE_UNKNOWN`, ...; empty: the hub was not asked, or gave none."""
        self.status = status or _STATUS[code].name
        """That of gRPC, by name: the hub's, or the one that fits best."""

    def fields(self, text: str) -> dict[str, Any]:
        """For programs; `text` is the sentence."""
        return {"code": self.status, "reason": self.reason, "message": text, "exit_code": int(self.code)}


def unknown_nodes(node_ids: Sequence[str], flag: str = "") -> CtlFault:
    """Ids that name no node, misspelt ones as a rule; `flag` is for whoever means them all the same."""
    named = ", ".join(map(shown, node_ids[:_NAMED]))
    more = f" and {len(node_ids) - _NAMED} more" if len(node_ids) > _NAMED else ""
    noun = "node" if len(node_ids) == 1 else "nodes"
    hint = f"; {flag}" if flag else ""
    return CtlFault(
        ExitCode.NOT_FOUND,
        f"the hub knows no {noun} {named}{more}: `cloudhubctl nodes` lists those that it knows{hint}",
        UNKNOWN[0],
    )


_HINTS = {
    "NODE_UNKNOWN": "`cloudhubctl nodes` lists those that it knows",
    "UNKNOWN_NODE": "`cloudhubctl sessions` lists who is connected",
    "NO_LIVE_SESSION": "`cloudhubctl session NODE` shows how its last one ended",
    "MESSAGE_UNKNOWN": "an object is named by its metadata.uid or by NAMESPACE/TYPE/NAME; "
    "`cloudhubctl inspect NODE --all` lists what the node has",
    "OTHER_EPOCH": "`cloudhubctl session NODE` shows the live one",
    "ROLE_FORBIDDEN": "give a certificate of another role (docs/operations)",
    "CERTIFICATE_WITHOUT_ROLE": "give a certificate of an operator or publisher (docs/operations)",
    **dict.fromkeys(
        CERTIFICATE_REASONS,
        "give the hub a certificate that it takes, by --cert and --key (docs/operations/certificates.md)",
    ),
    "ROW_DAMAGED": "mend the row in the database, or delete the node and publish anew",
}
_CODES = {
    grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
    grpc.StatusCode.UNAVAILABLE: ExitCode.UNREACHABLE,
}
TRY_AGAIN = NO_ANSWER - {grpc.StatusCode.UNAUTHENTICATED}
"""What a service answers that is away or has too much to do; a certificate does not get better by asking."""
# Of gRPC's own words, on either side, about a message above its bound.
_TOO_LARGE = "message larger than max"


def fault_of(
    error: grpc.aio.AioRpcError, service: str, address: str, seconds: float, why: str = ""
) -> CtlFault:
    """What a failed call of a service says to people; `seconds` is how long it was waited for, `why` what is
    known of a connection that failed."""
    where = f"{service} at {address}"
    name = f"--{service} or CLOUDHUBCTL_{service.upper()}"
    code, detail = error.code(), error.details() or error.code().name
    reason, _ = error_info(error)
    from_hub = reason != code.name
    if code is grpc.StatusCode.UNAVAILABLE and not from_hub:
        cause = why or detail.rpartition(": ")[2]
        text = f"{where} cannot be reached ({cause}): start it, or name its address with {name}"
        if not why and "socket closed" in detail.lower():
            text += "; perhaps it wants TLS: --ca, --cert and --key"
        return CtlFault(ExitCode.UNREACHABLE, text, status=code.name)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        text = (
            f"{where} did not answer within {seconds:g} s: look at its health, or wait longer with --timeout"
        )
        return CtlFault(ExitCode.UNREACHABLE, text, status=code.name)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        text = f"{address} is no {service} of a hub: name its address with {name}"
        return CtlFault(ExitCode.USAGE, text, status=code.name)
    if _TOO_LARGE in detail and not from_hub:
        return CtlFault(
            ExitCode.USAGE,
            f"{where} and this program exchange no message so large: {detail}",
            status=code.name,
        )
    if code in TRY_AGAIN:
        return CtlFault(
            ExitCode.UNREACHABLE,
            f"{where} cannot do it now: {detail}; try again",
            reason if from_hub else "",
            code.name,
        )
    hint = f"; {_HINTS[reason]}" if reason in _HINTS else ""
    return CtlFault(
        _CODES.get(code, ExitCode.FAILED), f"{detail}{hint}", reason if from_hub else "", code.name
    )

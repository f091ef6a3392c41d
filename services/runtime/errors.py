"""The errors a service answers with.

    HubError                 knows its gRPC status, its reason and whether to try again
    ├── InvalidRequest       the caller's request is wrong; names the field
    ├── NotFound             the named thing does not exist
    ├── Refused              a rule forbids it now (limit, state)
    ├── Ended                the hub ends what went on (a stream); the caller may begin anew
    ├── Unauthenticated      the caller's certificate proves nothing (any more)
    ├── Forbidden            the caller's role may not do this
    ├── Crowded              the caller has too much under way; again later
    └── Unavailable          a dependency does not answer; safe to repeat
        └── StoreUnavailable the database does not answer
            ├── StoreRefused   it has something against a value; other rows can be written
            ├── StoreBusy      somebody else holds the rows; other rows can be written
            └── RowDamaged     a row holds what no version of the service writes; names its node

    StartupError             the process cannot start; one sentence for the operator

`services.runtime.rpc` turns a HubError into a gRPC status with `google.rpc.ErrorInfo`; servicers
raise and never pick statuses by hand.
"""

import grpc

from services.runtime.names import cut_bytes

# gRPC carries a status in at most 8 KiB of metadata: the sentence with each byte as up to three, and once
# more with the details in base64. Above that the caller gets RESOURCE_EXHAUSTED, at random.
MAX_DETAIL_BYTES = 800
MAX_METADATA_BYTES = 256

ROW_DAMAGED = "ROW_DAMAGED"


class HubError(Exception):
    """Base of everything a service answers with.

    `reason` is stable and machine-readable (UPPER_SNAKE_CASE); `detail` says what is wrong and
    what would be right; `metadata` becomes ErrorInfo's. Both are cut to what a status can carry; what repeats
    a caller's text cuts it before (`names.shown`), so that the sentence has its end.
    """

    status: grpc.StatusCode = grpc.StatusCode.INTERNAL
    retryable = False

    def __init__(self, reason: str, detail: str, **metadata: str) -> None:
        detail = cut_bytes(detail, MAX_DETAIL_BYTES)
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.metadata = {key: cut_bytes(value, MAX_METADATA_BYTES) for key, value in metadata.items()}


class InvalidRequest(HubError):
    """The request is malformed; `field` names the part that is."""

    status = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, detail: str, reason: str = "INVALID_FIELD") -> None:
        super().__init__(reason, f"{field}: {detail}", field=field)
        self.field = field


class NotFound(HubError):
    """What the request names does not exist."""

    status = grpc.StatusCode.NOT_FOUND


class Refused(HubError):
    """The request is well formed but may not be carried out now."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class Ended(HubError):
    """A stream is ended for what its caller did or did not do on it; a new one may begin."""

    status = grpc.StatusCode.ABORTED


class Unauthenticated(HubError):
    """The caller's certificate does not say who calls, or no longer."""

    status = grpc.StatusCode.UNAUTHENTICATED


class Forbidden(HubError):
    """The caller is known and may not do this."""

    status = grpc.StatusCode.PERMISSION_DENIED


class Crowded(HubError):
    """The caller has its share of the server under way; the same may be asked later."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True


class Unavailable(HubError):
    """A dependency does not answer; the outcome may be unknown, repeating is safe."""

    status = grpc.StatusCode.UNAVAILABLE
    retryable = True


class StoreUnavailable(Unavailable):
    """The database does not answer or refused the transaction for a passing reason."""

    def __init__(self, detail: str) -> None:
        super().__init__("STORE_UNAVAILABLE", detail)


class StoreRefused(StoreUnavailable):
    """The database refused a value, which it will do again; what has nothing to do with it can be written."""


class StoreBusy(StoreUnavailable):
    """Rows stayed locked by others for too long; nothing was written."""


class RowDamaged(StoreUnavailable):
    """A row of a node holds what no version of the service writes: an operator has to mend it. What has
    nothing to do with the node can be read and written."""

    status = grpc.StatusCode.DATA_LOSS
    retryable = False

    def __init__(self, node_id: str, detail: str) -> None:
        super().__init__(f"a row of node {node_id!r} is damaged: {detail}")
        self.reason = ROW_DAMAGED
        self.metadata = {"node_id": cut_bytes(node_id, MAX_METADATA_BYTES)}


class StartupError(Exception):
    """The process cannot start; the text is one sentence that says why and what would be right."""

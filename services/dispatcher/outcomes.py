"""What the store said of a publish, in the words of the API. Pure."""

from cloudhub.v1 import dispatcher_pb2 as pb
from services.dispatcher.outbox.records import Accepted, Deleted, Duplicate, Result, Stale
from services.dispatcher.publication import Rejection
from services.runtime.errors import HubError, StoreRefused
from services.runtime.names import cut_bytes

# Of what is said to one outcome of thousands.
MAX_TEXT_BYTES = 320
_MAX_DETAILS = 64


def tell(outcome: pb.NodeOutcome, result: Result | Exception) -> None:
    """Fills in a node's outcome."""
    if isinstance(result, (Accepted, Deleted)):
        outcome.outcome = pb.OUTCOME_ACCEPTED
    elif isinstance(result, Duplicate):
        outcome.outcome = pb.OUTCOME_ACCEPTED
        outcome.duplicate_of = result.row.message_id
    elif isinstance(result, Stale):
        outcome.outcome = pb.OUTCOME_STALE
        outcome.reason, outcome.detail = result.reason, result.detail
    elif isinstance(result, Rejection):
        reject(outcome, result)
    elif isinstance(result, StoreRefused):
        reject(outcome, Rejection("STORE_REFUSED", "message", result.detail))
    elif isinstance(result, HubError):
        unavailable(outcome, result)


def fit(response: pb.PublishResponse, max_bytes: int) -> None:
    """Makes the response to a large publish one that its caller takes: what repeats itself, or is known
    elsewhere, is left out."""
    if response.ByteSize() <= max_bytes:
        return
    told: set[tuple[str, str]] = set()
    for outcome in response.outcomes:
        fault = (outcome.reason, outcome.field)
        if fault in told or len(told) >= _MAX_DETAILS:
            outcome.ClearField("detail")
            outcome.ClearField("field")
        elif outcome.reason:
            told.add(fault)
    if response.ByteSize() > max_bytes:
        for outcome in response.outcomes:
            outcome.ClearField("duplicate_of")


def reject(outcome: pb.NodeOutcome, rejection: Rejection) -> None:
    """The request is wrong, or a quota is used up."""
    outcome.outcome = pb.OUTCOME_REJECTED
    outcome.reason = rejection.reason
    outcome.field = cut_bytes(rejection.field, MAX_TEXT_BYTES)
    outcome.detail = cut_bytes(rejection.detail, MAX_TEXT_BYTES)


def unavailable(outcome: pb.NodeOutcome, error: HubError) -> None:
    """What became of the message is unknown."""
    outcome.outcome = pb.OUTCOME_UNAVAILABLE
    outcome.reason, outcome.detail = error.reason, cut_bytes(error.detail, MAX_TEXT_BYTES)

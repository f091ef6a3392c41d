"""What the demo calls lost."""

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from demo.ledger import Expected, Ledger, ObjectKey


def _ledger(*entries: tuple[str, str, int, pb.Outcome.ValueType]) -> Ledger:
    ledger = Ledger()
    for uid, operation, version, outcome in entries:
        request = pb.PublishRequest(
            message=Message(resource_version=str(version), operation=operation, resource=f"a/pod/{uid}"),
            node_ids=["edge-1"],
        )
        outcomes = [pb.NodeOutcome(node_id="edge-1", outcome=outcome, reason="WHY")]
        ledger.enter(request, pb.PublishResponse(outcomes=outcomes), uid)
    return ledger


def _missing(ledger: Ledger, held: dict[ObjectKey, int]) -> list[tuple[ObjectKey, Expected]]:
    return list(ledger.missing(held))


def test_an_object_at_its_newest_accepted_version_is_not_missing() -> None:
    ledger = _ledger(("u", "insert", 5, pb.OUTCOME_ACCEPTED), ("u", "update", 6, pb.OUTCOME_ACCEPTED))

    assert _missing(ledger, {("edge-1", "u"): 6}) == []
    assert ledger.accepted == 2
    assert ledger.first_version == 5


def test_an_older_version_or_none_is_missing() -> None:
    ledger = _ledger(("u", "update", 6, pb.OUTCOME_ACCEPTED))
    missing = [(("edge-1", "u"), Expected(6, "a/pod/u", False))]

    assert _missing(ledger, {("edge-1", "u"): 5}) == missing
    assert _missing(ledger, {}) == missing


def test_a_deleted_object_must_be_gone() -> None:
    ledger = _ledger(("u", "insert", 5, pb.OUTCOME_ACCEPTED), ("u", "delete", 6, pb.OUTCOME_ACCEPTED))

    assert _missing(ledger, {}) == []
    assert [key for key, _ in _missing(ledger, {("edge-1", "u"): 5})] == [("edge-1", "u")]


def test_a_publish_without_acceptance_is_counted_and_expected_nowhere() -> None:
    """A version whose outcome stayed unknown may be at the edge all the same: that is no loss."""
    ledger = _ledger(("u", "insert", 5, pb.OUTCOME_ACCEPTED), ("u", "update", 6, pb.OUTCOME_UNAVAILABLE))

    assert ledger.refused == {"UNAVAILABLE WHY": 1}
    assert _missing(ledger, {("edge-1", "u"): 5}) == []
    assert _missing(ledger, {("edge-1", "u"): 6}) == []

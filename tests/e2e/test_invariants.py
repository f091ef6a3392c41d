"""The checks themselves: each finds the breach it is for, and nothing where there is none."""

from tests.support.invariants import (
    Acceptances,
    Held,
    Place,
    Step,
    hidden_successors,
    not_arrived,
    numbers_missing,
    numbers_out_of_order,
    steps_back,
)

A = Place("edge-1", "default/configmap/a")
B = Place("edge-1", "default/configmap/b")


def accepted() -> Acceptances:
    acceptances = Acceptances()
    acceptances.stored(A, "u1", 1)
    acceptances.stored(A, "u1", 2)
    acceptances.stored(B, "u2", 1)
    acceptances.deleted(B)
    return acceptances


def test_the_newest_version_and_the_deletion_are_what_should_arrive() -> None:
    assert accepted().count == 4
    assert not_arrived(accepted(), {A: Held("u1", 2)}) == []


def test_a_lost_version_is_found() -> None:
    """Invariants 1 and 3."""
    assert not_arrived(accepted(), {A: Held("u1", 1)}) == [
        "edge-1 default/configmap/a: holds u1 version 1, not u1 version 2"
    ]
    assert not_arrived(accepted(), {}) == ["edge-1 default/configmap/a: holds nothing, not u1 version 2"]


def test_a_lost_deletion_is_found() -> None:
    """Invariants 1 and 3."""
    assert not_arrived(accepted(), {A: Held("u1", 2), B: Held("u2", 1)}) == [
        "edge-1 default/configmap/b: holds u2 version 1, not nothing"
    ]


def test_an_object_from_nowhere_is_found() -> None:
    """Invariant 3."""
    elsewhere = Place("edge-2", A.resource)
    assert not_arrived(accepted(), {A: Held("u1", 2), elsewhere: Held("u1", 2)}) == [
        "edge-2 default/configmap/a: holds u1 version 2, which nobody published"
    ]


def test_repetitions_and_other_objects_are_no_step_back() -> None:
    history = [Step(A, "u1", 9, "insert"), Step(A, "u1", 9, "insert"), Step(B, "u2", 1, "insert")]
    history += [Step(A, "u1", 10, "update"), Step(A, "u1", None, "delete"), Step(A, "u1", None, "delete")]
    assert steps_back(history) == []


def test_an_older_version_after_a_newer_one_is_found() -> None:
    """Invariant 2."""
    history = [Step(A, "u1", 10, "insert"), Step(A, "u1", 9, "update"), Step(A, "u1", 10, "update")]
    assert steps_back(history) == ["edge-1 u1: version 9 came after 10"]
    nameless = [Step(A, "", 2, "insert"), Step(A, "", 1, "update")]
    assert steps_back(nameless) == ["edge-1 default/configmap/a: version 1 came after 2"]


def test_an_object_after_its_deletion_is_found() -> None:
    """Invariant 2, C13."""
    history = [Step(A, "u1", 1, "insert"), Step(A, "u1", 2, "delete"), Step(A, "u1", 3, "update")]
    assert steps_back(history) == ["edge-1 u1: version 3 came after the deletion"]


def test_a_late_deletion_of_the_former_object_is_found() -> None:
    """C15."""
    create, delete = Step(A, "u1", 1, "insert"), Step(A, "u1", 2, "delete")
    successor = Step(A, "u2", 3, "insert")
    assert hidden_successors([create, delete, delete, successor, successor]) == []
    assert hidden_successors([create, delete, successor, delete]) == [
        "edge-1 default/configmap/a: delete of u1 came after u2"
    ]


def test_a_confirmed_upload_that_nobody_got_is_found() -> None:
    """C31."""
    assert numbers_missing({"edge-1": [1, 2]}, {"edge-1": [2, 1, 3]}) == []
    assert numbers_missing({"edge-1": [1, 2]}, {"edge-1": [1]}) == [
        "edge-1: upload 2 was confirmed and never handed on"
    ]
    assert len(numbers_missing({"edge-1": [1]}, {})) == 1


def test_uploads_in_the_wrong_order_are_found() -> None:
    """C31."""
    assert numbers_out_of_order({"edge-1": [1, 2, 1, 2, 3]}) == []
    assert numbers_out_of_order({"edge-1": [1, 3, 2]}) == ["edge-1: upload 3 came before 2"]

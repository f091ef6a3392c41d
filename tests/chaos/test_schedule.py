"""The schedule of faults: a function of its seed."""

from itertools import islice

import pytest

from chaos.schedule import SERVICES, Fault, FaultKind, Stage, schedule
from chaos.settings import StoreKind

STAGE = Stage(replicas=3, fleets=2, lease_seconds=3.0, store=StoreKind.POSTGRESQL)


def first(seed: int, count: int, stage: Stage = STAGE) -> list[Fault]:
    return list(islice(schedule(seed, stage), count))


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert first(1, 100) == first(1, 100)
    assert first(1, 100) != first(2, 100)


@pytest.mark.parametrize("seed", range(5))
def test_every_kind_of_fault_comes_once_before_any_comes_again(seed: int) -> None:
    names = [fault.name for fault in first(seed, 36)]
    assert len(set(names[:18])) == 18
    assert sorted(names[:18]) == sorted(names[18:])


def test_all_processes_have_their_turn() -> None:
    hit = {(fault.target, fault.replica) for fault in first(1, 500)}
    assert {(service, replica) for service in SERVICES for replica in range(3)} <= hit
    assert {("edges", 0), ("edges", 1), ("database", 0), ("enrolment", 0)} <= hit
    assert len(hit) == 13


def test_a_pause_ends_before_the_lease_and_a_long_one_after_it() -> None:
    faults = first(1, 500)
    short = [fault.hold_seconds for fault in faults if fault.kind is FaultKind.PAUSE]
    long = [fault.hold_seconds for fault in faults if fault.kind is FaultKind.LONG_PAUSE]
    assert 0 < min(short) <= max(short) < 2.0
    assert 3.0 < min(long) <= max(long) < 6.0


def test_without_a_server_the_database_is_left_alone() -> None:
    alone = Stage(replicas=1, fleets=1, lease_seconds=3.0, store=StoreKind.SQLITE)
    assert {(fault.target, fault.replica) for fault in first(1, 200, alone)} == {
        *((service, 0) for service in SERVICES),
        ("edges", 0),
        ("enrolment", 0),
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_short_run_has_an_overtake_too(seed: int) -> None:
    """C36: what only the comparison of epochs prevents is tried by every run."""
    overtakes = [fault for fault in first(seed, 2) if fault.kind is FaultKind.OVERTAKE]
    assert [fault.target for fault in overtakes] == ["dispatcher"]
    # What was sent before it is due again, and its streams live on.
    assert 1.4 < overtakes[0].hold_seconds < 1.8


@pytest.mark.parametrize("seed", range(5))
def test_a_short_run_ends_enrolment_too(seed: int) -> None:
    assert "kill enrolment" in [fault.name for fault in first(seed, 3)]


def test_only_patroni_is_asked_for_a_switchover() -> None:
    """C8: beside crashes of the leader's server, and of its whole machine."""
    for store in StoreKind:
        stage = Stage(replicas=2, fleets=1, lease_seconds=3.0, store=store)
        kinds = {fault.kind for fault in first(1, 100, stage) if fault.target == "database"}
        others = {FaultKind.RESTART, FaultKind.FAILOVER} if store is not StoreKind.SQLITE else set()
        assert kinds == others | ({FaultKind.SWITCHOVER} if store is StoreKind.PATRONI else set())


def test_one_replica_cannot_be_overtaken() -> None:
    alone = Stage(replicas=1, fleets=1, lease_seconds=3.0, store=StoreKind.POSTGRESQL)
    assert FaultKind.OVERTAKE not in {fault.kind for fault in first(1, 100, alone)}


def test_a_fault_leaves_others_where_another_replica_lives() -> None:
    """From then on the ten seconds for the recovery count; else from its end."""
    faults = first(1, 200)
    assert all(fault.leaves_others(2) for fault in faults if fault.target in ("sessions", "connector"))
    assert not any(fault.leaves_others(2) for fault in faults if fault.target in ("edges", "database"))
    alone = {fault.target for fault in faults if not fault.leaves_others(2, edges_know_all=False)}
    assert alone == {"edges", "database", "dispatcher", "connector"}
    # Whatever else happens goes on without enrolment.
    assert {fault.target for fault in faults if fault.leaves_others(1)} == {"enrolment"}
    assert {
        fault.kind for fault in faults if fault.target == "dispatcher" and not fault.leaves_others(2)
    } == {FaultKind.OVERTAKE}

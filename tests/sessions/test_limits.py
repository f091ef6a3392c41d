"""Limits on nodes: `services.sessions.limits`."""

from services.sessions.limits import Limits, LimitsChange, Scope, changed, full_place, places

HERE = places("p1", "c1")


def test_the_defaults_limit_connectors_only() -> None:
    limits = Limits()
    assert [limits.of(place) for place in HERE] == [10_000, 0, 0]
    counts = {(Scope.PROJECT, "p1"): 10**9, (Scope.TOTAL, ""): 10**9, (Scope.CONNECTOR, "c1"): 9_999}
    assert full_place(limits, counts, HERE, ()) is None
    counts[Scope.CONNECTOR, "c1"] = 10_000
    assert full_place(limits, counts, HERE, ()) == (Scope.CONNECTOR, "c1")


def test_every_scope_refuses_by_itself() -> None:
    for scope, place in zip((Scope.CONNECTOR, Scope.PROJECT, Scope.TOTAL), HERE, strict=True):
        limits = Limits(
            per_connector=2 if scope is Scope.CONNECTOR else 0,
            per_project=2 if scope is Scope.PROJECT else 0,
            total=2 if scope is Scope.TOTAL else 0,
        )
        assert full_place(limits, {place: 1}, HERE, ()) is None
        assert full_place(limits, {place: 2}, HERE, ()) == place
        assert full_place(limits, {place: 3}, HERE, ()) == place


def test_a_takeover_is_exempt_only_where_the_node_is_counted_already() -> None:
    """C7: at the limit a node may take over its own session; moving to another full place is an open."""
    limits = Limits(per_connector=1, per_project=1, total=1)
    counts = dict.fromkeys((*HERE, *places("p2", "c2")), 1)
    assert full_place(limits, counts, HERE, HERE) is None
    assert full_place(limits, counts, places("p2", "c1"), HERE) == (Scope.PROJECT, "p2")
    assert full_place(limits, counts, places("p1", "c2"), HERE) == (Scope.CONNECTOR, "c2")


def test_a_project_may_have_a_limit_of_its_own() -> None:
    limits = Limits(per_project=5, projects={"p1": 1})
    assert full_place(limits, {(Scope.PROJECT, "p1"): 1}, HERE, ()) == (Scope.PROJECT, "p1")
    assert full_place(limits, {(Scope.PROJECT, "p2"): 1}, places("p2", "c1"), ()) is None


def test_a_change_keeps_what_it_does_not_name() -> None:
    limits = changed(Limits(1, 2, 3, {"p1": 4}), LimitsChange(per_project=0, projects={"p2": 5}))
    assert limits == Limits(1, 0, 3, {"p1": 4, "p2": 5})


def test_zero_removes_a_projects_exception() -> None:
    limits = changed(Limits(1, 2, 3, {"p1": 4}), LimitsChange(per_connector=9, total=8, projects={"p1": 0}))
    assert limits == Limits(9, 2, 8, {})

"""The table of session states: `services.sessions.lifecycle`."""

from dataclasses import replace

import pytest

from cloudhub.v1 import link_pb2, sessions_pb2
from services.sessions.fencing import Epoch
from services.sessions.lifecycle import TABLE, EventKind, Input, Reason, Session, State, advance

NOW_MS = 5000


def session(state: State, *, announced: bool = False) -> Session:
    reason = {State.DRAINING: Reason.EVICTED, State.CLOSED: Reason.EDGE_CLOSED}.get(state)
    return Session(
        node_id="edge-1",
        project_id="p1",
        epoch=Epoch(7),
        state=state,
        reason=reason,
        announced=announced,
        connector_id="c1",
        dispatcher_id="d1",
        link=1,
        transport="websocket",
        peer_address="192.0.2.1:1",
        opened_at_ms=1000,
        closed_at_ms=2000 if state is State.CLOSED else None,
    )


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Input)
@pytest.mark.parametrize("announced", [False, True])
def test_every_state_takes_every_input(state: State, step: Input, announced: bool) -> None:
    """What the table does not list changes nothing; an end owes a `disconnected` if and only if a
    `connected` was written."""
    before = session(state, announced=announced)
    change = advance(before, step, NOW_MS, Reason.TRANSPORT_ERROR)
    if (state, step) not in TABLE or (step is Input.TRANSFER and not announced):
        assert change is None
        return
    assert change
    after = change.session
    assert after.epoch == before.epoch
    if not after.live:
        assert after.reason is not None
        assert after.closed_at_ms == NOW_MS
        assert change.event is (EventKind.DISCONNECTED if announced else None)
    elif after.state is State.ACTIVE:
        assert after.announced
        assert change.event is (None if announced else EventKind.CONNECTED)
    else:
        assert change.event is None


@pytest.mark.parametrize("step", Input)
def test_no_input_leads_out_of_closed(step: Input) -> None:
    """C9: whatever is late for a session that is gone changes nothing."""
    assert advance(session(State.CLOSED, announced=True), step, NOW_MS, Reason.SHUTDOWN) is None


def test_every_live_state_can_end() -> None:
    for state in set(State) - {State.CLOSED}:
        for step in (Input.CLOSE, Input.SUPERSEDE):
            assert TABLE[state, step] is State.CLOSED


def test_whoever_asked_first_gives_the_reason() -> None:
    change = advance(session(State.DRAINING, announced=True), Input.CLOSE, NOW_MS, Reason.EDGE_CLOSED)
    assert change
    assert change.session.reason is Reason.EVICTED


def test_being_superseded_is_the_reason_even_of_a_session_asked_to_end() -> None:
    change = advance(session(State.DRAINING, announced=True), Input.SUPERSEDE, NOW_MS, Reason.SUPERSEDED)
    assert change
    assert change.session.reason is Reason.SUPERSEDED


def test_an_orphan_returns_to_where_it_was() -> None:
    for announced, state in ((False, State.OPENING), (True, State.ACTIVE)):
        change = advance(session(State.ORPHANED, announced=announced), Input.RECLAIM, NOW_MS, Reason.SHUTDOWN)
        assert change
        assert (change.session.state, change.session.reason, change.event) == (state, None, None)


def test_a_transfer_tells_nothing_and_needs_a_session_that_was_active() -> None:
    """C37: no connect event; an orphan that never had its verdict has no link to move."""
    for state in (State.ACTIVE, State.ORPHANED):
        change = advance(session(state, announced=True), Input.TRANSFER, NOW_MS, Reason.TRANSFERRED)
        assert change
        assert (change.session.state, change.session.reason, change.event) == (State.ACTIVE, None, None)
    assert advance(session(State.ORPHANED), Input.TRANSFER, NOW_MS, Reason.TRANSFERRED) is None
    draining = session(State.DRAINING, announced=True)
    assert advance(draining, Input.TRANSFER, NOW_MS, Reason.TRANSFERRED) is None


def test_a_session_never_closes_before_it_opened() -> None:
    """C36: a clock that stepped back shows in no row."""
    late = replace(session(State.ACTIVE), opened_at_ms=9000)
    change = advance(late, Input.CLOSE, NOW_MS, Reason.SHUTDOWN)
    assert change
    assert change.session.closed_at_ms == 9000


def test_states_and_reasons_are_numbered_as_on_the_wire() -> None:
    wire_states = {f"SESSION_STATE_{state.name}": int(state) for state in State}
    wire_reasons = {f"CLOSE_REASON_{reason.name}": int(reason) for reason in Reason}
    assert wire_states == {n: v for n, v in sessions_pb2.SessionState.items() if v}
    # What an edge is told of a revoked node stands in no row: the registry has an eviction.
    told_to_edges_alone = {"CLOSE_REASON_REVOKED"}
    assert wire_reasons == {
        n: v for n, v in link_pb2.CloseReason.items() if v and n not in told_to_edges_alone
    }

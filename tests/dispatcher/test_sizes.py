"""How long lists of other services may be: `services.dispatcher.sizes`, and those who ask it."""

from typing import Any, cast

import pytest

from cloudhub.v1 import link_pb2, peer_pb2
from cloudhub.v1 import sessions_pb2 as sessions
from services.dispatcher.link_servicer import LinkServicer
from services.dispatcher.outbox.records import Accept, Stale
from services.dispatcher.peers.forward_intake import (
    MAX_OUTCOMES_PER_RESPONSE,
    ForwardIntake,
    accepts_of,
)
from services.dispatcher.peers.servicer import PeerServicer
from services.dispatcher.upstream.subscriptions import check_acknowledged, check_modules
from services.runtime.errors import InvalidRequest
from services.sessions import requests as of_sessions
from tests.support.outbox import NODE, NOW_MS, publication


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.dispatcher.sizes.MAX_ELEMENTS", 3)


@pytest.mark.usefixtures("few")
async def test_lists_of_other_dispatchers_are_bounded() -> None:
    """C45: before an element is looked at."""
    nothing: Any = None
    servicer = PeerServicer(nothing, nothing, nothing, nothing, nothing)
    hints = peer_pb2.HintRequest(hints=[peer_pb2.NodeHint()] * 4)
    messages = [peer_pb2.HandedMessage()] * 2
    spread = peer_pb2.HintRequest(hints=[peer_pb2.NodeHint(messages=messages)] * 2)
    for request, field in ((hints, "hints"), (spread, "hints[].messages")):
        with pytest.raises(InvalidRequest, match="at most 3") as refused:
            await servicer.Hint(request, nothing)
        assert refused.value.field == field
    with pytest.raises(InvalidRequest, match="at most 3"):
        direct = peer_pb2.SendDirectRequest(messages=[peer_pb2.DirectMessage()] * 4)
        await servicer.SendDirect(direct, nothing)
    with pytest.raises(InvalidRequest, match="at most 3"):
        accepts_of(peer_pb2.ForwardRequest(messages=[peer_pb2.ForwardedMessage()] * 4), NOW_MS)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("field", ["announcements", "transfers", "written", "upstream", "activity", "ended"])
def test_lists_of_connectors_are_bounded(field: str) -> None:
    """C45: every list of a batch."""
    batch = link_pb2.ConnectorBatch()
    for _ in range(4):
        getattr(batch, field).add()
    servicer = cast("Any", object.__new__(LinkServicer))
    with pytest.raises(InvalidRequest, match="at most 3") as refused:
        servicer._handle(None, batch)
    assert refused.value.field == field


def test_lists_of_subscribers_are_bounded() -> None:
    """C45."""
    check_acknowledged(range(65_536))
    with pytest.raises(InvalidRequest, match="at most 65536"):
        check_acknowledged(range(65_537))
    with pytest.raises(InvalidRequest, match="at most 64, got 65"):
        check_modules(["edgecontroller"] * 65)


def test_lists_of_the_sessions_calls_are_bounded() -> None:
    """C45: also those of which nothing but a set is kept."""
    with pytest.raises(InvalidRequest, match="at most 4096"):
        of_sessions.refs([sessions.SessionRef()] * 4097)
    with pytest.raises(InvalidRequest, match="at most 4096"):
        of_sessions.session_filter(
            sessions.ListSessionsRequest(states=[sessions.SESSION_STATE_ACTIVE] * 4097)
        )


def test_answers_to_forwarded_publishes_go_in_parts() -> None:
    """C41: many that are stored together are told in several responses, in order."""
    delivery: Any = type("NoSessions", (), {"sessions": {}})()
    intake = ForwardIntake(delivery, cast("Any", None))
    number = MAX_OUTCOMES_PER_RESPONSE * 2 + 1
    for place in range(number):
        intake._came(Accept(NODE, publication(1), NOW_MS), Stale(f"S{place}", ""), 0)
    responses = intake._responses
    assert [len(one.outcomes) for one in responses] == [MAX_OUTCOMES_PER_RESPONSE] * 2 + [1]
    assert [len(one.not_here) for one in responses] == [MAX_OUTCOMES_PER_RESPONSE] * 2 + [1]
    assert [o.reason for one in responses for o in one.outcomes] == [f"S{n}" for n in range(number)]

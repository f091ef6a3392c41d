"""The trace of a request for a certificate, over enrolment and sessions, and what must not be in it."""

from collections.abc import AsyncIterator

import pytest

from tests.support.enrolment import EnrolledHub, request_for
from tests.support.otlp import OtlpReceiver, ReceivedSpan

REASON, OUTCOME, SERIAL = "cloudhub.reason", "cloudhub.outcome", "cloudhub.certificate.serial"


@pytest.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OtlpReceiver]:
    """Where the hub's spans go; to be asked for before the hub."""
    async with OtlpReceiver() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


async def trace_of(receiver: OtlpReceiver, *names: str) -> list[ReceivedSpan]:
    """The spans of the only request so far; they are as many as that, each the child of the one before."""
    spans = [await receiver.one(name) for name in names]
    (trace_id,) = {span.trace_id for span in spans}
    assert [span.parent_id for span in spans] == ["", *(span.span_id for span in spans[:-1])]
    assert len(receiver.found(trace_id=trace_id)) == len(names)
    return spans


async def test_a_certificate_by_token_is_one_trace_from_the_request_to_the_registry(
    receiver: OtlpReceiver, enrolled: EnrolledHub
) -> None:
    token, body = await enrolled.token(), request_for("edge-1")
    answered = await enrolled.edge_crt(token, body=body)
    enrol, issue, register = await trace_of(receiver, "enrol", "issue", "register")
    assert (enrol.service, issue.service, register.service) == (
        *("cloudhub-enrolment", "cloudhub-enrolment"),
        "cloudhub-sessions",
    )
    serial = f"{answered.certificate.serial_number:x}"
    for span in (enrol, issue, register):
        assert span.attributes["cloudhub.node.id"] == "edge-1"
        assert span.attributes[OUTCOME] == "issued"
        assert span.attributes[SERIAL] == serial
        assert REASON not in span.attributes
        assert span.error is None
    assert enrol.attributes["cloudhub.enrolment.right"] == "token"
    assert enrol.attributes["network.peer.address"] == "127.0.0.1"
    assert enrol.start_ns <= issue.start_ns <= register.start_ns
    assert register.end_ns <= issue.end_ns <= enrol.end_ns
    told = repr(receiver.spans)
    assert not any(part in told for part in token.split("."))
    assert body.hex() not in told
    assert repr(body)[2:-1] not in told


async def test_a_refusal_by_sessions_has_its_reason_in_every_span(
    receiver: OtlpReceiver, enrolled: EnrolledHub
) -> None:
    token = await enrolled.token("gate-*")
    assert (await enrolled.edge_crt(token)).status == 403
    for span in await trace_of(receiver, "enrol", "issue", "register"):
        assert span.attributes["cloudhub.node.id"] == "edge-1"
        assert span.attributes[OUTCOME] == "refused"
        assert span.attributes[REASON] == "token_of_others"
        assert SERIAL not in span.attributes
        assert span.error == "the token is not for node edge-1"
    assert token.split(".")[-1] not in repr(receiver.spans)


@pytest.mark.parametrize(
    ("token", "body", "reason"),
    [("", None, "nothing_shown"), (f"{'0' * 64}.a.b.c", b"no request", "signing_request")],
)
async def test_what_is_refused_at_once_asks_nobody_and_names_no_node(
    receiver: OtlpReceiver, enrolled: EnrolledHub, token: str, body: bytes | None, reason: str
) -> None:
    """Anybody may send this, in anybody's name."""
    assert (await enrolled.edge_crt(token, "edge-victim", body)).status in (400, 401)
    (enrol,) = await trace_of(receiver, "enrol")
    assert enrol.attributes[OUTCOME] == "refused"
    assert enrol.attributes[REASON] == reason
    assert enrol.error
    assert "cloudhub.node.id" not in enrol.attributes


async def test_a_hub_that_cannot_answer_says_so_in_the_trace(
    receiver: OtlpReceiver, enrolled: EnrolledHub
) -> None:
    token = await enrolled.token()
    await enrolled.hub.sessions.stop()
    assert (await enrolled.edge_crt(token)).status == 503
    for span in await trace_of(receiver, "enrol", "issue"):
        assert span.attributes[OUTCOME] == "failed"
        assert span.attributes[REASON] == "sessions"

"""Publishing, from the request to the link: `services.dispatcher.publishing`, `delivery`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.outbox.quotas import Quotas
from services.dispatcher.outbox.records import EventKind, RowState
from services.dispatcher.policy import PolicySettings
from services.runtime.tracing import Tracing
from tests.support.dispatcher import DeliveryHalf, request, running_delivery_half

NODE = "edge-1"
SAMPLED = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
UNSAMPLED = "00-" + "a" * 32 + "-" + "b" * 16 + "-00"


@pytest.fixture
async def half() -> AsyncIterator[DeliveryHalf]:
    async with running_delivery_half(PolicySettings(direct_messages=2)) as running:
        yield running


async def one(half: DeliveryHalf, what: pb.PublishRequest) -> pb.NodeOutcome:
    (response,) = await half.publish(what)
    (outcome,) = response.outcomes
    return outcome


def direct(*node_ids: str, message_id: str = "d1") -> pb.PublishRequest:
    return request(*node_ids, ack_mode=pb.ACK_MODE_NO_ACK, version="", message_id=message_id)


def answer(message_id: str = "r1") -> pb.PublishRequest:
    return request(NODE, operation="response", parent_id="q1", version="", message_id=message_id)


# Acknowledged messages


async def test_an_accepted_message_is_stored_first_and_then_sent(half: DeliveryHalf) -> None:
    """C12: ACCEPTED is answered only after the message is durable."""
    await half.connect()
    outcome = await one(half, request(NODE, message_id="m1"))
    assert outcome == pb.NodeOutcome(node_id=NODE, outcome=pb.OUTCOME_ACCEPTED)
    assert [row.message_id for row in await half.outbox.pending(NODE, 0, 10)] == ["m1"]
    assert half.stream.frames() == [("m1", False)]
    assert half.metrics.value("published_total", outcome="accepted", reason="") == 1


async def test_a_message_to_an_absent_node_waits_in_the_outbox_alone(half: DeliveryHalf) -> None:
    """C3: nothing stays in memory."""
    assert (await one(half, request(NODE, message_id="m1"))).outcome == pb.OUTCOME_ACCEPTED
    assert half.delivery.sessions == {}
    await half.connect()
    assert half.stream.frames() == [], "its body is on its way"
    for _ in range(20):
        await asyncio.sleep(0)
    assert half.stream.frames() == [("m1", False)]


@pytest.mark.parametrize("ack_mode", [pb.ACK_MODE_ACK, pb.ACK_MODE_NO_ACK])
async def test_a_publish_to_very_many_nodes_lets_others_have_their_turn(
    half: DeliveryHalf, ack_mode: pb.AckMode.ValueType
) -> None:
    """C45: the loop goes round again at least once per 256 nodes, while they are checked and while they are
    told; outcomes come in order."""
    turns = 0

    async def bystander() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    nodes = [f"n{number}" for number in range(5000)]
    for node_id in nodes[:20]:
        await half.connect(node_id)
    watching = asyncio.create_task(bystander())
    large = request(*nodes[:-1], "Not A Node", ack_mode=ack_mode)
    (response,) = await half.publish(large)
    watching.cancel()
    assert turns >= 2 * 5000 // 256
    assert [outcome.node_id for outcome in response.outcomes] == [*nodes[:-1], "Not A Node"]
    accepted = sum(outcome.outcome == pb.OUTCOME_ACCEPTED for outcome in response.outcomes)
    assert accepted == (4999 if ack_mode == pb.ACK_MODE_ACK else 20)
    assert response.outcomes[-1].reason == "NODE_ID_MALFORMED"
    assert len(half.stream.frames()) == 20


@pytest.mark.parametrize("operation", ["update", ""])
async def test_the_response_to_a_large_publish_fits(half: DeliveryHalf, operation: str) -> None:
    """C45: with the longest ids of nodes and messages, and malformed ones; every outcome has its reason."""
    good = [f"{number:05d}".ljust(253, "x") for number in range(5000)]
    bad = [f"N{number:05d}" + "漢" * 2000 for number in range(5000)]
    what = request(*good, *bad, message_id="漢" * 341, operation=operation)
    await half.publish(what)
    (response,) = await half.publish(what)
    assert response.ByteSize() < 3 * 1024 * 1024
    assert len(response.outcomes) == 10_000
    assert [outcome.node_id for outcome in response.outcomes[:5000]] == good
    last = response.outcomes[-1]
    assert last.node_id.startswith("N04999漢")
    assert last.reason == ("NODE_ID_MALFORMED" if operation else "OPERATION_MISSING")
    first = next(outcome for outcome in response.outcomes if outcome.reason == last.reason)
    assert first.detail
    assert first.field


async def test_every_node_of_a_request_has_its_outcome_in_order(half: DeliveryHalf) -> None:
    """C16: the rest of the batch goes on."""
    await half.publish(request("n2", version="9"))
    (response,) = await half.publish(request("n1", "n2", "Not A Node", "n3", version="5", message_id="m1"))
    assert [(o.node_id, o.outcome, o.reason) for o in response.outcomes] == [
        ("n1", pb.OUTCOME_ACCEPTED, ""),
        ("n2", pb.OUTCOME_STALE, "BELOW_FLOOR"),
        ("Not A Node", pb.OUTCOME_REJECTED, "NODE_ID_MALFORMED"),
        ("n3", pb.OUTCOME_ACCEPTED, ""),
    ]
    assert response.outcomes[2].field == "node_ids"
    assert response.message_id == "m1"


async def test_a_malformed_request_harms_no_other_of_its_batch(half: DeliveryHalf) -> None:
    """C16, invariant 9: it is told to the caller, counted, and stands in the node's history."""
    await half.connect()
    bad, good = await half.publish(
        request(NODE, "BAD", version="x", message_id="m1"), request(NODE, message_id="m2")
    )
    assert [(o.outcome, o.reason, o.field) for o in bad.outcomes] == [
        (pb.OUTCOME_REJECTED, "VERSION_MALFORMED", "message.resource_version")
    ] * 2
    assert good.outcomes[0].outcome == pb.OUTCOME_ACCEPTED
    (event,) = await half.outbox.history(NODE, "m1", "", 10)
    assert (event.kind, event.reason) == (EventKind.REJECTED, "VERSION_MALFORMED")
    assert "BAD" not in half.outbox.nodes
    await half.publish(request("edge-mistyped", version="x", message_id="m3"))
    assert await half.outbox.history("edge-mistyped", "m3", "", 10) == []  # C50: counted alone
    assert half.metrics.value("published_total", outcome="rejected", reason="version_malformed") == 3


@pytest.mark.parametrize("version", ["1", "x"])
async def test_a_request_without_nodes_is_rejected(half: DeliveryHalf, version: str) -> None:
    (response,) = await half.publish(request(version=version))
    (outcome,) = response.outcomes
    assert outcome.outcome == pb.OUTCOME_REJECTED
    assert outcome.field == ("node_ids" if version == "1" else "message.resource_version")


async def test_an_equal_version_in_flight_names_the_first_and_is_not_doubled(half: DeliveryHalf) -> None:
    """C13."""
    await half.connect()
    await half.publish(request(NODE, message_id="m1"))
    outcome = await one(half, request(NODE, message_id="m2"))
    assert (outcome.outcome, outcome.duplicate_of) == (pb.OUTCOME_ACCEPTED, "m1")
    assert half.stream.frames() == [("m1", False)]


async def test_an_equal_version_that_is_parked_is_sent_again(half: DeliveryHalf) -> None:
    """C13: equal and parked is un-parked."""
    session = await half.connect()
    await half.publish(request(NODE, message_id="m1"))
    half.delivery.refused(session, request(parent_id="m1").message, "no space left")
    await half.settled()
    assert [row.state for row in await half.outbox.pending(NODE, 0, 10)] == [RowState.PARKED]
    half.stream.taken()
    await one(half, request(NODE))
    await half.settled()
    for _ in range(20):
        await asyncio.sleep(0)
    assert half.stream.frames() == [("m1", False)]


async def test_only_what_can_be_delivered_counts_as_work_at_hand(half: DeliveryHalf) -> None:
    """What scales dispatchers: nothing that waits for an absent node, nothing that is parked."""

    def deliverable() -> float:
        half.delivery.measure()
        return half.metrics.value("deliverable_messages")

    def of(name: str, node_id: str = NODE) -> pb.PublishRequest:
        content = f'{{"metadata":{{"uid":"{name}"}}}}'.encode()
        return request(node_id, content=content, resource=f"x/y/{name}", message_id=name)

    for name in ("a", "b"):
        for node_id in (NODE, "edge-away"):
            await one(half, of(name, node_id))
    assert deliverable() == 0
    session = await half.connect()
    assert deliverable() == 2
    half.delivery.refused(session, Message(parent_id="a"), "no room")
    assert deliverable() == 1
    half.delivery.acknowledged(session, Message(parent_id="b"))
    assert deliverable() == 0
    await half.settled()
    await one(half, of("a"))
    await half.settled()
    for _ in range(20):
        await asyncio.sleep(0)
    assert deliverable() == 1
    half.delivery.remove(session)
    assert deliverable() == 0


async def leave(
    half: DeliveryHalf, what: pb.PublishRequest, monkeypatch: pytest.MonkeyPatch, traceparent: str = ""
) -> None:
    """A publisher that goes while the store is asked; returns when that has answered."""
    submitted = asyncio.Event()
    submit = half.publishing._submit

    def noticed(*arguments: Any) -> None:
        submit(*arguments)
        submitted.set()

    monkeypatch.setattr(half.publishing, "_submit", noticed)
    left = asyncio.create_task(half.publish(what, traceparent=traceparent))
    await submitted.wait()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    await half.settled()


@pytest.mark.parametrize("nodes", [2, 1025])
async def test_what_a_publisher_left_behind_is_stored_and_counts_all_the_same(
    half: DeliveryHalf, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 9: what is a row of the history is counted, whether somebody waits for the answer or not."""
    node_ids = [f"edge-{number}" for number in range(nodes)]
    assert (await one(half, request(node_ids[0], version="7"))).outcome == pb.OUTCOME_ACCEPTED
    await leave(half, request(*node_ids, version="5", message_id="m5"), monkeypatch)
    refused = await half.outbox.history(node_ids[0], "m5", "", 9)
    assert [one.kind for one in refused] == [EventKind.REJECTED]
    assert [row.message_id for row in await half.outbox.pending(node_ids[1], 0, 10)] == ["m5"]
    counted = half.metrics.value
    assert counted("published_total", outcome="stale", reason="below_floor") == 1
    assert counted("published_total", outcome="accepted", reason="") == nodes


async def test_the_trace_of_a_publisher_who_left_ends(
    traced: DeliveryHalf, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave(traced, request(NODE, message_id="m1"), monkeypatch, SAMPLED)
    assert sorted(span.name for span in spans.get_finished_spans()) == ["outbox write", "publish"]


async def test_an_over_full_node_is_told() -> None:
    """C18."""
    async with running_delivery_half(quotas=Quotas(unknown_node_rows=0)) as half:
        outcome = await one(half, request(NODE))
        assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_REJECTED, "NODE_QUOTA_ROWS")


async def test_an_absent_store_is_told_and_repeating_is_safe(half: DeliveryHalf) -> None:
    """UNAVAILABLE: the store did not answer."""
    half.outbox.away = True
    outcome = await one(half, request(NODE, message_id="m1"))
    assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_UNAVAILABLE, "STORE_UNAVAILABLE")
    half.outbox.away = False
    assert (await one(half, request(NODE, message_id="m1"))).outcome == pb.OUTCOME_ACCEPTED


async def test_a_row_that_the_store_refuses_is_rejected_alone(half: DeliveryHalf) -> None:
    """C44."""
    half.outbox.bad_keys.add("u1")
    bad, good = await half.publish(request(NODE), request(NODE, content=b"1"))
    assert (bad.outcomes[0].outcome, bad.outcomes[0].reason) == (pb.OUTCOME_REJECTED, "STORE_REFUSED")
    assert good.outcomes[0].outcome == pb.OUTCOME_ACCEPTED


async def test_a_publish_while_the_service_stops_is_unavailable() -> None:
    async with running_delivery_half() as half:
        await half.settled()
        await half.publish(request(NODE))
    outcome = await one(half, request(NODE))
    assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_UNAVAILABLE, "STOPPING")


# NO-ACK


async def test_a_direct_message_is_sent_and_never_stored(half: DeliveryHalf) -> None:
    """C26."""
    await half.connect()
    assert (await one(half, direct(NODE))).outcome == pb.OUTCOME_ACCEPTED
    assert half.stream.frames() == [("d1", True)]
    assert await half.outbox.pending(NODE, 0, 10) == []
    assert half.sessions.asked == []


async def dropped(half: DeliveryHalf) -> list[tuple[str, str]]:
    """Message ids and reasons of the drops in the history."""
    await half.delivery.writer.flush()
    return [(e.message_id, e.reason) for _, e in half.outbox.events if e.kind == EventKind.DROPPED]


async def test_a_direct_message_to_an_absent_node_is_dropped_after_a_fresh_look_up(
    half: DeliveryHalf,
) -> None:
    """C26: dropped with a counted reason; only its history stays (invariant 9)."""
    half.delivery.remove(await half.connect())
    half.sessions.connected.clear()
    outcome = await one(half, direct(NODE))
    assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_NO_SESSION, "NOT_CONNECTED")
    assert half.sessions.asked == [[NODE]]
    assert half.metrics.value("dropped_total", reason="no_session") == 1
    assert await dropped(half) == [("d1", "no_session")]
    assert await half.outbox.pending(NODE, 0, 10) == []


async def test_a_direct_message_finds_a_session_that_opens_during_the_look_up(half: DeliveryHalf) -> None:
    """C8: never from a stale view."""
    half.sessions.before_answer = half.connect
    assert (await one(half, direct(NODE))).outcome == pb.OUTCOME_ACCEPTED
    assert half.stream.frames() == [("d1", True)]


async def test_a_direct_message_is_unavailable_while_sessions_is_away(half: DeliveryHalf) -> None:
    half.sessions.away = True
    outcome = await one(half, direct(NODE))
    assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_UNAVAILABLE, "SESSIONS_UNAVAILABLE")


async def test_a_direct_message_goes_on_while_sessions_and_store_are_away(half: DeliveryHalf) -> None:
    """When something dies: nothing else stops."""
    await half.connect()
    half.sessions.away = half.outbox.away = True
    assert (await one(half, direct(NODE))).outcome == pb.OUTCOME_ACCEPTED


async def test_a_full_lane_is_told_and_counted(half: DeliveryHalf) -> None:
    """C26: bounded."""
    session = await half.connect()
    await half.publish(direct(NODE, message_id="d1"), direct(NODE, message_id="d2"))
    outcome = await one(half, direct(NODE, message_id="d3"))
    assert (outcome.outcome, outcome.reason, outcome.field) == (pb.OUTCOME_REJECTED, "LANE_FULL", "node_ids")
    assert half.metrics.value("dropped_total", reason="lane_full") == 1
    half.delivery.written(session, 0, 2)
    assert (await one(half, direct(NODE, message_id="d4"))).outcome == pb.OUTCOME_ACCEPTED
    assert half.stream.frames() == [("d1", True), ("d2", True), ("d4", True)]


async def test_what_waits_in_the_lane_of_a_link_that_ends_is_dropped_and_counted(half: DeliveryHalf) -> None:
    """C26, invariant 9."""
    session = await half.connect()
    await half.publish(direct(NODE, message_id="d1"), direct(NODE, message_id="d2"))
    half.delivery.remove(session)
    assert half.metrics.value("dropped_total", reason="link_gone") == 2
    assert await dropped(half) == [("d1", "link_gone"), ("d2", "link_gone")]
    assert half.delivery.sessions == {}


async def test_direct_messages_go_by_way_of_the_dispatchers_that_have_the_nodes(half: DeliveryHalf) -> None:
    """C34: together per dispatcher; each outcome is what that dispatcher says."""
    half.sessions.connected |= {"far-1", "far-2", "farther", "moved"}
    half.sessions.held_by = {"far-1": "d1", "far-2": "d1", "farther": "d2", "moved": "d2"}
    half.peers.answers["moved"] = pb.NodeOutcome(node_id="moved", outcome=pb.OUTCOME_NO_SESSION)
    (response,) = await half.publish(direct("far-1", "farther", "far-2", "moved", "absent"))
    assert [(one.node_id, one.outcome) for one in response.outcomes] == [
        ("far-1", pb.OUTCOME_ACCEPTED),
        ("farther", pb.OUTCOME_ACCEPTED),
        ("far-2", pb.OUTCOME_ACCEPTED),
        ("moved", pb.OUTCOME_NO_SESSION),
        ("absent", pb.OUTCOME_NO_SESSION),
    ]
    assert sorted(half.peers.sent) == [("d1", ["far-1", "far-2"]), ("d2", ["farther", "moved"])]


async def test_a_dispatcher_that_is_away_harms_no_other_message_of_the_call(half: DeliveryHalf) -> None:
    """C34: what became of messages on their way to it is unknown."""
    await half.connect()
    half.sessions.connected |= {"far", "farther"}
    half.sessions.held_by = {"far": "d1", "farther": "d2"}
    half.peers.away.add("d1")
    first, second = await half.publish(direct("far", "farther", NODE), request("far", NODE))
    assert [(one.outcome, one.reason) for one in first.outcomes] == [
        (pb.OUTCOME_UNAVAILABLE, "PEER_UNAVAILABLE"),
        (pb.OUTCOME_ACCEPTED, ""),
        (pb.OUTCOME_ACCEPTED, ""),
    ]
    assert [one.outcome for one in second.outcomes] == [pb.OUTCOME_ACCEPTED] * 2


async def test_an_answer_to_a_node_of_another_dispatcher_is_stored_and_its_owner_told(
    half: DeliveryHalf,
) -> None:
    """C40."""
    told: list[tuple[str, int]] = []
    half.delivery.elsewhere = lambda node_id, last_seq, _: told.append((node_id, last_seq))
    half.sessions.connected.add("far")
    half.sessions.held_by = {"far": "d1"}
    (response,) = await half.publish(request("far", operation="response", parent_id="req-1"))
    assert [one.outcome for one in response.outcomes] == [pb.OUTCOME_ACCEPTED]
    assert told == [("far", 1)]


async def test_what_is_committed_for_a_node_without_a_session_here_is_told(half: DeliveryHalf) -> None:
    """C34: with its seq; an un-parking without one. What is refused changes nothing and is not told."""
    told: list[tuple[str, int]] = []
    half.delivery.elsewhere = lambda node_id, last_seq, _: told.append((node_id, last_seq))
    await half.connect(NODE)
    await half.publish(request(NODE, "far"), request("far", version="2"), request("far"))
    await half.publish(request("far", version="2"))
    assert told == [("far", 1), ("far", 2)]
    half.delivery.reread("far")
    assert told[2:] == [("far", 0)]


async def test_one_look_up_serves_all_nodes_of_a_request(half: DeliveryHalf) -> None:
    await half.connect("n2")
    (response,) = await half.publish(direct("n1", "n2", "n3", "n1"))
    assert [o.outcome for o in response.outcomes] == [
        pb.OUTCOME_NO_SESSION,
        pb.OUTCOME_ACCEPTED,
        pb.OUTCOME_NO_SESSION,
        pb.OUTCOME_NO_SESSION,
    ]
    assert sorted({node for asked in half.sessions.asked for node in asked}) == ["n1", "n3"]
    assert len(half.sessions.asked) <= 2


# Answers


async def test_an_answer_is_stored_and_sent(half: DeliveryHalf) -> None:
    """C40: although the object's version was acknowledged."""
    session = await half.connect()
    await half.publish(request(NODE, message_id="m1"))
    half.delivery.acknowledged(session, request(parent_id="m1").message)
    assert (await one(half, answer("r1"))).outcome == pb.OUTCOME_ACCEPTED
    assert (await one(half, answer("r2"))).outcome == pb.OUTCOME_ACCEPTED
    assert half.stream.frames() == [("m1", False), ("r1", False), ("r2", False)]


async def test_an_answer_to_an_absent_node_does_not_wait(half: DeliveryHalf) -> None:
    """C40: whoever asked is gone."""
    outcome = await one(half, answer())
    assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_NO_SESSION, "NOT_CONNECTED")
    assert await half.outbox.pending(NODE, 0, 10) == []


async def test_an_answer_ends_with_the_session(half: DeliveryHalf) -> None:
    """C40, C27: all else is pending again for the next one."""
    session = await half.connect()
    await half.publish(answer(), request(NODE, message_id="m1"))
    half.delivery.remove(session)
    await half.settled()
    assert [row.message_id for row in await half.outbox.pending(NODE, 0, 10)] == ["m1"]
    assert half.metrics.value("ended_total", reason="its session ended") == 1


# Delivery by the clock and the store


async def test_a_silent_edge_gets_its_message_again() -> None:
    """C20, through the shell: its one heap of deadlines."""
    async with running_delivery_half(PolicySettings(jitter=0.0)) as half:
        session = await half.connect()
        await half.publish(request(NODE, message_id="m1"))
        half.delivery.written(session, 1, 0)
        half.clock.advance(5.0)
        half.delivery._deadlines.fire_due()
        assert half.stream.frames() == [("m1", False)] * 2
        half.delivery.written(session, 2, 0)
        await half.settled()
        (row,) = await half.outbox.pending(NODE, 0, 10)
        assert row.attempts == 1
        assert half.metrics.value("sent_total", lane="acknowledged", attempt="again") == 1


async def test_a_session_that_ended_is_not_woken() -> None:
    """Invariant 4."""
    async with running_delivery_half(PolicySettings(jitter=0.0)) as half:
        session = await half.connect()
        await half.publish(request(NODE, message_id="m1"))
        half.delivery.written(session, 1, 0)
        half.delivery.remove(session)
        half.stream.taken()
        half.clock.advance(3600)
        half.delivery._deadlines.fire_due()
        assert half.stream.frames() == []


async def test_bodies_that_the_store_did_not_give_are_asked_for_again(half: DeliveryHalf) -> None:
    """The database is away and comes back: all goes on by itself."""
    await half.publish(request(NODE, message_id="m1"))
    await half.connect()
    half.outbox.away = True
    for _ in range(20):
        await asyncio.sleep(0)
    assert half.stream.frames() == []
    half.outbox.away = False
    half.clock.advance(1.0)
    half.delivery._deadlines.fire_due()
    for _ in range(20):
        await asyncio.sleep(0)
    assert half.stream.frames() == [("m1", False)]


async def test_a_reading_of_the_outbox_that_failed_is_repeated(half: DeliveryHalf) -> None:
    """C25: an operator's redelivery is not forgotten because the store was away for a moment."""
    session = await half.connect()
    await half.publish(request(NODE, message_id="m1"))
    half.delivery.refused(session, request(parent_id="m1").message, "no space left")
    await half.settled()
    half.stream.taken()
    assert await half.outbox.redeliver(NODE, "", half.clock.wall_ms()) == 1
    half.outbox.away = True
    half.delivery.reread(NODE)
    await half.settled()
    half.outbox.away = False
    half.clock.advance(1.0)
    half.delivery._deadlines.fire_due()
    await half.settled()
    for _ in range(20):
        await asyncio.sleep(0)
    assert half.stream.frames() == [("m1", False)]


async def test_reading_again_an_absent_nodes_rows_is_no_fault(half: DeliveryHalf) -> None:
    half.delivery.reread(NODE)
    assert half.metrics.value("rereads_total") == 0


# Traces


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(spans: InMemorySpanExporter) -> AsyncIterator[DeliveryHalf]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing = Tracing(provider, "dispatcher")
    async with running_delivery_half(tracing=tracing) as running:
        yield running
    tracing.close()


async def test_the_steps_of_a_delivery_are_one_trace(
    traced: DeliveryHalf, spans: InMemorySpanExporter
) -> None:
    """It starts at the publisher's context and ends at the acknowledgement's record."""
    session = await traced.connect()
    what = request(NODE, message_id="m1")
    what.message.traceparent = SAMPLED
    (response,) = await traced.publish(what)
    assert response.trace_id == "a" * 32
    traced.delivery.acknowledged(session, request(parent_id="m1").message)
    await traced.settled()
    finished = spans.get_finished_spans()
    assert {span.name for span in finished} == {"publish", "outbox write", "deliver", "ack", "record"}
    assert {span.context.trace_id for span in finished if span.context} == {int("a" * 32, 16)}
    by_name = {span.name: span for span in finished}
    parents = {name: span.parent.span_id for name, span in by_name.items() if span.parent}
    ids = {name: span.context.span_id for name, span in by_name.items() if span.context}
    assert parents["publish"] == int("b" * 16, 16)
    assert parents["outbox write"] == parents["deliver"] == ids["publish"]
    assert parents["ack"] == ids["deliver"]
    assert parents["record"] == ids["deliver"]


async def test_the_ends_of_a_delivery_say_why(traced: DeliveryHalf, spans: InMemorySpanExporter) -> None:
    """C19, C21: its trace says so."""
    session = await traced.connect()
    refused = request(NODE, message_id="m1")
    expired = request(NODE, content=b"1", resource="default/configmap/b", message_id="m2")
    expired.time_to_live.FromSeconds(10)
    await traced.publish(refused, expired)
    traced.delivery.refused(session, request(parent_id="m1").message, "no space left")
    traced.clock.advance(10)
    traced.delivery._deadlines.fire_due()
    await traced.settled()
    reasons = {
        span.name: (span.status.description, (span.attributes or {})["cloudhub.reason"])
        for span in spans.get_finished_spans()
        if span.name in ("park", "end")
    }
    assert reasons == {
        "park": ("refused by the edge: no space left",) * 2,
        "end": ("expired",) * 2,
    }


async def test_an_unsampled_message_makes_no_spans(traced: DeliveryHalf, spans: InMemorySpanExporter) -> None:
    session = await traced.connect()
    (response,) = await traced.publish(request(NODE, message_id="m1"), traceparent=UNSAMPLED)
    traced.delivery.acknowledged(session, request(parent_id="m1").message)
    await traced.settled()
    assert spans.get_finished_spans() == ()
    assert response.trace_id == ""
    row = await traced.outbox.find(NODE, "m1", "")
    assert row
    assert row.traceparent == UNSAMPLED, "it is carried along"


async def test_a_direct_message_is_traced_too(traced: DeliveryHalf, spans: InMemorySpanExporter) -> None:
    await traced.connect()
    await traced.publish(direct(NODE), traceparent=SAMPLED)
    assert {span.name for span in spans.get_finished_spans()} == {"publish", "deliver"}


async def test_a_malformed_trace_context_is_not_carried(half: DeliveryHalf) -> None:
    what = request(NODE, message_id="m1")
    what.message.traceparent = "not a context"
    await half.publish(what)
    row = await half.outbox.find(NODE, "m1", "")
    assert row
    assert row.traceparent == ""


# Deleting nodes


def deletion(*node_ids: str, resource: str = f"node/{NODE}", message_id: str = "") -> pb.PublishRequest:
    return request(
        *node_ids, operation="delete", resource=resource, version="", content=b"", message_id=message_id
    )


@pytest.mark.parametrize("named", [(), (NODE,)])
async def test_a_deleted_nodes_session_is_ended_and_its_rows_go(
    half: DeliveryHalf, named: tuple[str, ...]
) -> None:
    """C10: the resource says which node; naming it in node_ids as well is fine."""
    await half.publish(request(NODE, message_id="m1"), request("edge-2", message_id="m1"))
    outcome = await one(half, deletion(*named))
    assert outcome == pb.NodeOutcome(node_id=NODE, outcome=pb.OUTCOME_ACCEPTED)
    assert half.sessions.deleted == [NODE]
    assert await half.outbox.summary(NODE) is None
    assert await half.outbox.pending("edge-2", 0, 10)
    assert (await one(half, deletion(*named))).outcome == pb.OUTCOME_ACCEPTED, "repeating it is fine"


async def test_a_deletion_stands_where_it_was_published(half: DeliveryHalf) -> None:
    """C10: what was published before it in one call goes, what was published after it stays."""
    responses = await half.publish(
        request(NODE, version="9", message_id="m1"), deletion(), request(NODE, version="1", message_id="m2")
    )
    assert [one.outcome for response in responses for one in response.outcomes] == [pb.OUTCOME_ACCEPTED] * 3
    assert [row.message_id for row in await half.outbox.pending(NODE, 0, 10)] == ["m2"]


@pytest.mark.parametrize(
    ("resource", "named", "reason", "field"),
    [
        ("node/Edge!", (), "NODE_ID_MALFORMED", "message.resource"),
        ("node/", (), "NODE_ID_MALFORMED", "message.resource"),
        (f"node/{NODE}", (NODE, "edge-2"), "NODES_MISMATCHED", "node_ids"),
        (f"node/{NODE}", ("edge-2",), "NODES_MISMATCHED", "node_ids"),
    ],
)
async def test_a_deletion_that_names_no_node_or_several_is_rejected(
    half: DeliveryHalf, resource: str, named: tuple[str, ...], reason: str, field: str
) -> None:
    """C16: with the field; nothing is deleted."""
    await half.publish(request(NODE, "edge-2", message_id="m1"))
    (response,) = await half.publish(deletion(*named, resource=resource))
    assert {(one.outcome, one.reason, one.field) for one in response.outcomes} == {
        (pb.OUTCOME_REJECTED, reason, field)
    }
    assert half.sessions.deleted == []
    assert await half.outbox.summary(NODE)


async def test_deleting_an_object_of_a_node_deletes_no_node(half: DeliveryHalf) -> None:
    """The prefix is cut off a resource of the node; what is left is what the edge deletes."""
    outcome = await one(
        half, request(NODE, operation="delete", resource=f"node/{NODE}/default/configmap/p1", content=b"null")
    )
    assert outcome.outcome == pb.OUTCOME_ACCEPTED
    assert half.sessions.deleted == []
    assert [row.path for row in await half.outbox.pending(NODE, 0, 10)] == ["default/configmap/p1"]


async def test_without_an_answer_of_sessions_nothing_is_deleted(half: DeliveryHalf) -> None:
    """C10: the outcome is unknown and the call safe to repeat; the rest of the batch goes on."""
    await half.publish(request(NODE, message_id="m1"))
    half.sessions.away = True
    first, second = await half.publish(deletion(), request("edge-2", message_id="m2"))
    assert [one.outcome for one in first.outcomes] == [pb.OUTCOME_UNAVAILABLE]
    assert [one.outcome for one in second.outcomes] == [pb.OUTCOME_ACCEPTED]
    assert await half.outbox.pending(NODE, 0, 10)
    half.sessions.away = False
    assert (await one(half, deletion())).outcome == pb.OUTCOME_ACCEPTED
    assert await half.outbox.summary(NODE) is None


async def test_rows_that_an_interrupted_deletion_left_go_with_its_repeat(half: DeliveryHalf) -> None:
    """C10: sessions has forgotten the node, the outbox has not; the rows tell who owned them."""
    await half.connect(epoch=7)
    await half.publish(request(NODE, message_id="m1"))
    half.outbox.away = True
    assert (await one(half, deletion())).outcome == pb.OUTCOME_UNAVAILABLE
    half.outbox.away = False
    assert (await one(half, deletion())).outcome == pb.OUTCOME_ACCEPTED
    assert await half.outbox.summary(NODE) is None


async def test_a_link_that_opens_while_its_node_is_deleted_stays_whole(half: DeliveryHalf) -> None:
    """C10: a session newer than the deleted one owns its rows; what it is sent it can settle."""
    half.sessions.newest_epochs[NODE] = 5

    async def reconnect() -> None:
        half.sessions.before_answer = None
        await half.connect(epoch=9)

    half.sessions.before_answer = reconnect
    assert (await one(half, deletion())).outcome == pb.OUTCOME_ACCEPTED
    summary = await half.outbox.summary(NODE)
    assert summary
    assert summary.node.owner_epoch == 9

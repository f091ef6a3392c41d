"""A message's trace from its publisher to the edge's acknowledgement, made by real processes."""

import signal

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from tests.support.otlp import OtlpReceiver, ReceivedSpan
from tests.tracing.cloud import CloudProgram, answer, new_context, receive, trace_of
from tests.tracing.hub import HubProcesses

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

DISPATCHER = ("cloudhub-dispatcher", "dispatcher-1")
CONNECTOR = ("cloudhub-connector", "connector-1")


def made_by(span: ReceivedSpan) -> tuple[str, str]:
    return span.service, span.instance


def session_epoch(span: ReceivedSpan) -> int:
    epoch = span.attributes["cloudhub.session.epoch"]
    assert isinstance(epoch, int)
    return epoch


@pytest.mark.parametrize("has_context", [True, False], ids=["publisher's trace", "a trace of ours"])
async def test_one_trace_tells_every_step_of_a_delivery(
    has_context: bool, receiver: OtlpReceiver, cloud: CloudProgram, agent: str
) -> None:
    context = new_context() if has_context else ""
    response = await cloud.publish(agent, context=context, name=f"whole-{has_context}")
    assert [outcome.outcome for outcome in response.outcomes] == [pb.OUTCOME_ACCEPTED]
    trace = response.trace_id
    record = await receiver.one("record", trace)
    (link,) = receiver.found("link", cloudhub__node__id=agent)
    chain = {
        name: await receiver.one(name, trace)
        for name in ("publish", "outbox write", "deliver", "send", "apply", "ack")
    }
    assert len(receiver.found(trace_id=trace)) == len(chain) + 1

    parents = {
        "outbox write": "publish",
        "deliver": "publish",
        "send": "deliver",
        "apply": "deliver",
        "ack": "deliver",
    }
    for child, parent in parents.items():
        assert chain[child].parent_id == chain[parent].span_id, f"{child} is no child of {parent}"
        assert chain[child].start_ns >= chain[parent].start_ns, f"{child} starts before {parent}"
    assert record.parent_id == chain["deliver"].span_id
    assert chain["ack"].links == ((trace, chain["apply"].span_id),)
    lasts = {name: span.end_ns - span.start_ns for name, span in chain.items()}
    assert 0 < lasts["publish"] < lasts["deliver"] < min(lasts["send"], lasts["apply"], lasts["ack"])
    assert chain["outbox write"].end_ns <= chain["deliver"].start_ns
    if context:
        assert trace == trace_of(context)
        assert chain["publish"].parent_id == context.split("-")[2]
    else:
        assert chain["publish"].parent_id == ""

    assert {name: made_by(span) for name, span in chain.items()} == {
        "publish": DISPATCHER,
        "outbox write": DISPATCHER,
        "deliver": DISPATCHER,
        "send": CONNECTOR,
        "apply": ("cloudhub-edge", agent),
        "ack": DISPATCHER,
    }
    assert {name: span.kind for name, span in chain.items()} == {
        "publish": "producer",
        "outbox write": "internal",
        "deliver": "producer",
        "send": "producer",
        "apply": "consumer",
        "ack": "consumer",
    }
    (connect,) = receiver.found("connect", link.trace_id)
    epoch = session_epoch(connect)
    for span in (*chain.values(), record):
        assert span.error is None
        assert span.attributes["messaging.system"] == "cloudhub"
        assert span.attributes["messaging.message.id"] == response.message_id
        assert span.attributes["cloudhub.node.id"] == agent
    for span in chain.values():
        assert span.attributes["messaging.destination.name"] == f"default/configmap/whole-{has_context}"
    for name in ("deliver", "send", "ack"):
        assert session_epoch(chain[name]) == epoch
    assert session_epoch(record) == epoch
    for name in ("publish", "deliver", "send", "ack"):
        assert chain[name].attributes["cloudhub.ack_mode"] == "ack"
    assert chain["deliver"].attributes["cloudhub.attempt"] == 1
    assert chain["deliver"].attributes["cloudhub.reason"] == "accepted"
    assert chain["deliver"].links == ((link.trace_id, link.span_id),)

    assert (await cloud.explain(agent, response.message_id)).trace_id == trace


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_delivery_after_a_restart_joins_the_trace_of_its_publication(
    number: signal.Signals, hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    """C12: what was accepted for an absent node is delivered by the next dispatcher, in the same trace."""
    node = f"edge-away-{number.name.lower()}"
    context = new_context()
    response = await cloud.publish(node, context=context)
    await receiver.one("outbox write", trace_of(context))
    publish = await receiver.one("publish", trace_of(context))
    assert receiver.found("deliver", trace_of(context)) == []

    await hub.restart("dispatcher", number)
    async with hub.peers.link(node) as peer:
        message = await receive(peer)
        assert message["header"]["msg_id"] == response.message_id
        await answer(peer, message)
        await receiver.one("record", trace_of(context))
    deliver = await receiver.one("deliver", trace_of(context))
    send = await receiver.one("send", trace_of(context))
    ack = await receiver.one("ack", trace_of(context))
    assert deliver.parent_id == publish.span_id
    assert deliver.attributes["cloudhub.reason"] == "session_opened"
    assert send.parent_id == deliver.span_id
    assert deliver.is_named_by(message["header"]["traceparent"])
    # A stock edge says nothing of traces: its acknowledgement belongs to the attempt.
    assert ack.parent_id == deliver.span_id
    explained = await cloud.explain(node, response.message_id)
    assert explained.trace_id == trace_of(context)


async def test_every_attempt_has_a_span_and_giving_up_says_why(
    receiver: OtlpReceiver, cloud: CloudProgram, agent: str
) -> None:
    """C20: an operation that the edge swallows is sent again, then parked."""
    context = new_context()
    response = await cloud.publish(agent, context=context, operation="frobnicate")
    park = await receiver.one("park", trace_of(context))
    delivers = await receiver.wait_for("deliver", trace_of(context), count=2)
    sends = await receiver.wait_for("send", trace_of(context), count=2)
    assert [span.attributes["cloudhub.attempt"] for span in delivers] == [1, 2]
    assert [span.attributes["cloudhub.reason"] for span in delivers] == ["accepted", "unacknowledged"]
    assert [span.parent_id for span in sends] == [span.span_id for span in delivers]
    assert receiver.found("ack", trace_of(context)) == []
    assert park.error == "not acknowledged in 2 attempts"
    assert park.attributes["cloudhub.reason"] == "not acknowledged in 2 attempts"
    assert park.attributes["cloudhub.failed"] is True
    assert park.parent_id == delivers[-1].span_id
    record = await receiver.one("record", trace_of(context))
    assert record.parent_id == delivers[-1].span_id
    explained = await cloud.explain(agent, response.message_id)
    assert explained.state == pb.DELIVERY_STATE_PARKED
    assert explained.trace_id == trace_of(context)


async def test_an_attempt_that_is_lost_with_its_link_says_so_and_the_next_one_why(
    hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    """C20: the message waits in the outbox for the node's next link."""
    context = new_context()
    async with hub.peers.link("edge-fades") as peer:
        response = await cloud.publish("edge-fades", context=context)
        await receive(peer)
        peer.transport.abort()
        lost = await receiver.one("lost", trace_of(context))
    async with hub.peers.link("edge-fades") as peer:
        await answer(peer, await receive(peer))
        await receiver.one("record", trace_of(context))
    first, second = await receiver.wait_for("deliver", trace_of(context), count=2)
    assert lost.parent_id == first.span_id
    assert lost.error == "the link ended before an acknowledgement came: transport_error"
    assert lost.attributes["cloudhub.reason"] == "transport_error"
    assert lost.attributes["messaging.message.id"] == response.message_id
    assert [span.attributes["cloudhub.reason"] for span in (first, second)] == ["accepted", "session_opened"]
    assert session_epoch(lost) == session_epoch(first) < session_epoch(second)
    for span in (first, second):
        link = await receiver.one("link", span.links[0][0])
        assert span.links == ((link.trace_id, link.span_id),)
        assert link.attributes["cloudhub.node.id"] == "edge-fades"
    assert first.links != second.links
    ends = await receiver.wait_for("disconnect", first.links[0][0])
    assert {end.attributes["cloudhub.reason"] for end in ends} == {"transport_error"}


async def test_what_was_parked_goes_again_for_that_reason(
    hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    """C20: `Redeliver` un-parks."""
    context = new_context()
    async with hub.peers.link("edge-full") as peer:
        await cloud.publish("edge-full", context=context, name="full")
        await answer(peer, await receive(peer), "error", "no space left on device")
        await receiver.one("record", trace_of(context))
        await cloud.admin.Redeliver(
            pb.RedeliverRequest(node_id="edge-full", object_key="uid-full"), timeout=20
        )
        await answer(peer, await receive(peer))
        await receiver.one("ack", trace_of(context))
    delivers = await receiver.wait_for("deliver", trace_of(context), count=2)
    assert [span.attributes["cloudhub.reason"] for span in delivers] == ["accepted", "redelivered"]


async def test_a_negative_acknowledgement_parks_with_the_edges_words(
    hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    """C21."""
    context = new_context()
    async with hub.peers.link("edge-nack") as peer:
        await cloud.publish("edge-nack", context=context)
        message = await receive(peer)
        await answer(peer, message, "error", "no space left on device")
        park = await receiver.one("park", trace_of(context))
        record = await receiver.one("record", trace_of(context))
    deliver = await receiver.one("deliver", trace_of(context))
    assert park.parent_id == deliver.span_id
    assert park.error == "refused by the edge: no space left on device"
    assert park.attributes["cloudhub.reason"] == park.error
    assert record.parent_id == deliver.span_id


async def test_an_edge_cannot_put_steps_of_a_message_into_another_trace(
    hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    context, foreign = new_context(), new_context()
    async with hub.peers.link("edge-liar") as peer:
        await cloud.publish("edge-liar", context=context)
        message = await receive(peer)
        await answer(peer, message, traceparent=foreign)
        ack = await receiver.one("ack", trace_of(context))
    assert ack.parent_id == (await receiver.one("deliver", trace_of(context))).span_id
    assert ack.links == ()
    assert receiver.found(trace_id=trace_of(foreign)) == []


async def test_what_expires_says_so_in_its_trace_and_is_never_sent(
    hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    """C19."""
    context, later = new_context(), new_context()
    # A millisecond is over before the second publish is stored and the link's TLS is agreed upon.
    await cloud.publish("edge-late", context=context, time_to_live_seconds=0.001)
    await cloud.publish("edge-late", context=later)
    async with hub.peers.link("edge-late") as peer:
        end = await receiver.one("end", trace_of(context))
        message = await receive(peer)
    assert trace_of(message["header"]["traceparent"]) == trace_of(later)
    assert end.error == "expired"
    assert end.attributes["cloudhub.reason"] == "expired"
    await receiver.one("record", trace_of(context))
    assert receiver.found("deliver", trace_of(context)) == []
    assert receiver.found("send", trace_of(context)) == []


async def test_a_message_without_acknowledgement_ends_with_its_send(
    hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    """C26."""
    context = new_context()
    async with hub.peers.link("edge-direct") as peer:
        response = await cloud.publish("edge-direct", context=context, ack_mode=pb.ACK_MODE_NO_ACK)
        message = await receive(peer)
        await answer(peer, message)
        send = await receiver.one("send", trace_of(context))
    publish = await receiver.one("publish", trace_of(context))
    deliver = await receiver.one("deliver", trace_of(context))
    assert deliver.is_named_by(message["header"]["traceparent"])
    assert (send.parent_id, deliver.parent_id) == (deliver.span_id, publish.span_id)
    for span in (publish, deliver, send):
        assert span.attributes["cloudhub.ack_mode"] == "no_ack"
        assert span.attributes["messaging.message.id"] == response.message_id
        assert span.attributes["messaging.destination.name"] == message["route"]["resource"]
        assert span.attributes["cloudhub.node.id"] == "edge-direct"
    assert len(receiver.found(trace_id=trace_of(context))) == 3


async def test_a_publish_that_is_turned_down_says_why(receiver: OtlpReceiver, cloud: CloudProgram) -> None:
    """C13 and C16: STALE, REJECTED and NO_SESSION; nothing follows the `publish` span."""
    await cloud.publish("edge-away", name="stale", version="10")
    turned_down = {
        "BELOW_FLOOR": {"name": "stale", "version": "9"},
        "VERSION_MALFORMED": {"version": "v1"},
        "CONTENT_NOT_JSON": {"content": b"{"},
        "NOT_CONNECTED": {"ack_mode": pb.ACK_MODE_NO_ACK},
    }
    for reason, request in turned_down.items():
        context = new_context()
        response = await cloud.publish("edge-away", context=context, **request)  # type: ignore[arg-type]
        assert [outcome.reason for outcome in response.outcomes] == [reason]
        assert response.trace_id == trace_of(context)
        publish = await receiver.one("publish", trace_of(context))
        assert publish.attributes["cloudhub.reasons"] == [reason]
        assert publish.attributes["cloudhub.reason"] == reason
        assert publish.error == (None if reason == "BELOW_FLOOR" else reason)
        assert publish.attributes.get("cloudhub.failed") == (None if reason == "BELOW_FLOOR" else True)
        assert len(receiver.found(trace_id=trace_of(context))) == 1


async def test_a_context_that_makes_no_sense_counts_as_none(
    receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    """W3C Trace Context: the receiver begins a new trace."""
    rubbish = "00-" + "z" * 32 + "-" + "0" * 16 + "-01"
    response = await cloud.publish("edge-away", context=rubbish)
    publish = await receiver.one("publish", response.trace_id)
    assert publish.parent_id == ""


async def test_one_publish_to_many_nodes_is_one_trace_with_a_step_per_node(
    receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    context = new_context()
    await cloud.publish("edge-away", "edge-gone", "Not A Node", context=context)
    writes = await receiver.wait_for("outbox write", trace_of(context), count=2)
    publish = await receiver.one("publish", trace_of(context))
    assert {write.attributes["cloudhub.node.id"] for write in writes} == {"edge-away", "edge-gone"}
    assert {write.parent_id for write in writes} == {publish.span_id}
    assert publish.attributes["cloudhub.nodes"] == 3
    assert publish.attributes["cloudhub.reasons"] == ["NODE_ID_MALFORMED"]
    assert publish.error == "NODE_ID_MALFORMED"


async def test_an_unsampled_message_makes_no_spans_but_its_context_reaches_the_edge(
    hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    context, after = new_context(sampled=False), new_context()
    async with hub.peers.link("edge-unsampled") as peer:
        response = await cloud.publish("edge-unsampled", context=context)
        assert response.trace_id == ""
        message = await receive(peer)
        assert message["header"]["traceparent"] == context
        await answer(peer, message)
        # What comes later has been exported, so what came before would have been.
        await cloud.publish("edge-unsampled", context=after)
        await answer(peer, await receive(peer))
        await receiver.one("record", trace_of(after))
        await receiver.one("send", trace_of(after))
    assert receiver.found(trace_id=trace_of(context)) == []
    assert (await cloud.explain("edge-unsampled", response.message_id)).trace_id == trace_of(context)

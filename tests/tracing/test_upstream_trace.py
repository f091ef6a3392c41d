"""The trace of what an edge sends, up to the cloud program that settles it; made by real processes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from tests.support.otlp import OtlpReceiver
from tests.tracing.cloud import CloudProgram, new_context, receive, send, trace_of
from tests.tracing.hub import HubProcesses

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

NODE = "edge-up"


async def first(deliveries: AsyncIterator[pb.SubscribeResponse], message_id: str) -> pb.UpstreamDelivery:
    """The delivery of one message; others are passed over."""
    async with asyncio.timeout(20):
        async for response in deliveries:
            for delivery in response.deliveries:
                if delivery.message.id == message_id:
                    return delivery
    raise AssertionError("the stream ended")


@pytest.mark.parametrize(
    ("module", "group", "operation", "resource"),
    [
        ("edgecontroller", "resource", "update", "default/podstatus/p1"),
        ("router", "user", "upload", "telemetry"),
    ],
    ids=["status report", "durable upload"],
)
async def test_what_an_edge_says_is_traced_until_a_subscriber_is_done_with_it(
    module: str,
    group: str,
    operation: str,
    resource: str,
    hub: HubProcesses,
    receiver: OtlpReceiver,
    cloud: CloudProgram,
) -> None:
    context = new_context()
    async with hub.peers.link(NODE) as peer:
        stream = cloud.dispatcher.Subscribe()
        await stream.write(pb.SubscribeRequest(subscription=pb.Subscription(modules=[module])))
        message_id = await send(peer, operation, resource, {"a": 1}, group=group, traceparent=context)
        delivery = await first(stream, message_id)
        receive_span = await receiver.one("receive", trace_of(context))
        assert receiver.found("handover", trace_of(context)) == []
        await stream.write(pb.SubscribeRequest(acknowledged=[delivery.delivery_id]))
        handover = await receiver.one("handover", trace_of(context))
        stream.cancel()
    assert receive_span.parent_id == context.split("-")[2]
    assert handover.parent_id == receive_span.span_id
    assert receive_span.is_named_by(delivery.message.traceparent)
    assert (receive_span.kind, handover.kind) == ("consumer", "producer")
    for span in (receive_span, handover):
        assert (span.service, span.instance) == ("cloudhub-dispatcher", "dispatcher-1")
        assert span.attributes["messaging.system"] == "cloudhub"
        assert span.attributes["messaging.message.id"] == message_id
        assert span.attributes["messaging.destination.name"] == module
        assert span.attributes["cloudhub.node.id"] == NODE
        assert span.attributes["cloudhub.session.epoch"] == delivery.epoch
    assert handover.attributes["cloudhub.redelivered"] is False


async def test_a_request_that_nobody_serves_is_answered_in_its_own_trace(
    hub: HubProcesses, receiver: OtlpReceiver
) -> None:
    """C32."""
    context = new_context()
    async with hub.peers.link(NODE) as peer:
        message_id = await send(
            peer, "get", "membership/detail", None, source="twin", traceparent=context, sync=True
        )
        answer = await receive(peer)
        assert answer["route"]["operation"] == "error"
        assert answer["header"]["parent_msg_id"] == message_id
        send_span = await receiver.one("send", trace_of(context))
    deliver = await receiver.one("deliver", trace_of(context))
    assert deliver.parent_id == context.split("-")[2]
    assert send_span.parent_id == deliver.span_id
    assert deliver.is_named_by(answer["header"]["traceparent"])

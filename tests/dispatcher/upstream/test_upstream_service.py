"""The upstream half with a real gRPC server, a real store and scripted links."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cloudhub.v1.dispatcher_pb2 import SubscribeRequest, Subscription
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.resources_pb2 import DispatcherResources
from services.dispatcher.upstream.routing import Acknowledgement
from services.dispatcher.upstream.settings import UpstreamSettings
from services.runtime.rpc import error_reason
from services.runtime.tracing import Tracing
from tests.support.upstream import event, open_hub, report, upload

ANSWER = ("cloudhub", "error")


def request(message_id: str, *, source: str = "metamanager", resource: str = "default/secret/s") -> Message:
    return Message(
        id=message_id, source=source, group="resource", operation="query", resource=resource, sync=True
    )


async def test_a_message_reaches_the_subscriber_of_its_module(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, hub.subscriber("edgecontroller") as cloud:
        hub.receive("edge-1", 5, report("p1", "Running"))
        (delivery,) = await cloud.next()
        assert delivery.module == "edgecontroller"
        assert (delivery.node_id, delivery.epoch, delivery.redelivered) == ("edge-1", 5, False)
        assert delivery.message.resource == "node/edge-1/default/podstatus/p1"
        assert delivery.message.content == b'"Running"'


async def test_connected_comes_first_and_disconnected_last_exactly_once(tmp_path: Path) -> None:
    """C8: also for the module of uploads, which take their way over the disk."""
    async with open_hub(tmp_path) as hub, hub.subscriber("edgecontroller", "router") as cloud:
        for epoch in (5, 6):
            hub.upstream.session_opened(event("edge-1", epoch, "connected"))
            hub.receive("edge-1", epoch, report("p1", str(epoch)))
            for number in range(10):
                hub.receive("edge-1", epoch, upload(epoch * 100 + number))
            hub.upstream.session_closed(event("edge-1", epoch, "disconnected"))
        got = await cloud.take(2 * (2 + 1 + 2 + 10))
        by_module = {
            module: [one.message.id for one in got if one.module == module]
            for module in ("edgecontroller", "router")
        }
        assert by_module["edgecontroller"] == [
            "edge-1-5-connected",
            "p1-5-update",
            "edge-1-5-disconnected",
            "edge-1-6-connected",
            "p1-6-update",
            "edge-1-6-disconnected",
        ]
        assert by_module["router"] == [
            "edge-1-5-connected",
            *[f"upload-{500 + number}" for number in range(10)],
            "edge-1-5-disconnected",
            "edge-1-6-connected",
            *[f"upload-{600 + number}" for number in range(10)],
            "edge-1-6-disconnected",
        ]
        await hub.until_done([one.message.id for one in got if one.message.source == "cloudhub"])
        assert len(hub.done_events) == 4


async def test_events_wait_for_a_subscriber_and_are_done_when_it_took_them(tmp_path: Path) -> None:
    """C8: `edgecontroller` is told of every event, also when it comes later."""
    async with open_hub(tmp_path) as hub:
        hub.upstream.session_opened(event("edge-1", 5, "connected"))
        async with hub.subscriber("edgecontroller", "devicecontroller") as cloud:
            (delivery,) = await cloud.next()
            assert delivery.message.resource == "node/edge-1"
            assert json.loads(delivery.message.content)["event_type"] == "connected"
            hub.upstream.session_closed(event("edge-1", 5, "disconnected"))
            others = await cloud.next(2)
            assert {one.module for one in others} == {"edgecontroller", "devicecontroller"}
            await cloud.acknowledge(delivery, others[0])
            await hub.until_done(["edge-1-5-connected"])
            assert hub.done_events == ["edge-1-5-connected"], "a copy of the other is still out"
            await cloud.acknowledge(others[1])
            await hub.until_done(["edge-1-5-disconnected"])


async def test_events_that_nobody_asks_for_are_bounded_and_the_oldest_given_up(tmp_path: Path) -> None:
    """C3, invariant 9: counted, and sessions need not keep them either."""
    async with open_hub(tmp_path, settings=UpstreamSettings(most_events_per_node=2)) as hub:
        for epoch in (5, 6):
            hub.upstream.session_opened(event("edge-1", epoch, "connected"))
            hub.upstream.session_closed(event("edge-1", epoch, "disconnected"))
        await hub.until_done(["edge-1-5-connected", "edge-1-5-disconnected"])
        assert hub.metric("dropped_total", reason="node_events") == 2
        held = DispatcherResources()
        hub.upstream.count(held)
        assert (held.upstream_waiting, held.events_unsettled) == (2, 2)
        async with hub.subscriber("edgecontroller") as cloud:
            got = [f"{one.epoch} {one.message.operation}" for one in await cloud.next(2)]
            assert got == ["6 connected", "6 disconnected"]


async def test_adopted_events_are_told_once_and_acknowledged_again(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, hub.subscriber("edgecontroller") as cloud:
        left = [event("edge-1", 5, "connected"), event("edge-1", 5, "disconnected")]
        hub.upstream.adopt_events(left)
        hub.upstream.adopt_events(left)
        got = await cloud.take(2)
        assert [one.message.operation for one in got] == ["connected", "disconnected"]
        await hub.until_done([one.event_id for one in left])
        hub.done_events.clear()
        hub.upstream.adopt_events(left)
        await hub.until_done([one.event_id for one in left])
        assert hub.metric("handed_total") == 2


async def test_an_adopted_event_comes_before_what_the_next_session_said(tmp_path: Path) -> None:
    """C8: in order per node, as far as nothing was handed on yet."""
    async with open_hub(tmp_path) as hub:
        hub.upstream.session_opened(event("edge-1", 6, "connected"))
        hub.receive("edge-1", 6, report("p"))
        hub.upstream.adopt_events([event("edge-1", 5, "disconnected")])
        async with hub.subscriber("edgecontroller") as cloud:
            got = await cloud.take(3)
            assert [one.message.operation for one in got] == ["disconnected", "connected", "update"]
            assert [one.epoch for one in got] == [5, 6, 6]


async def test_noise_is_counted_and_harms_nothing(tmp_path: Path) -> None:
    """C29: what nobody can handle goes nowhere; everything else goes on."""
    async with open_hub(tmp_path) as hub, hub.subscriber("edgecontroller") as cloud:
        hub.receive("edge-1", 5, Message(content=b"null"))
        hub.receive("edge-1", 5, Message(id="1", operation="response"))
        hub.receive("edge-1", 5, Message(id="1", operation="connected", source="cloudhub"))
        hub.receive(
            "edge-1", 5, Message(id="2", operation="what?", content=b"\xff\x00", resource="a/b/c/d/e")
        )
        (delivery,) = await cloud.next()
        assert delivery.message.id == "2"
        assert delivery.message.content == b"\xff\x00"
        assert hub.metric("received_total", route="noise") == 3
        for reason in ("empty_route", "missing_parent", "forged_event"):
            assert hub.metric("noise_total", reason=reason) == 1
        assert hub.edge.answers == []


async def test_what_belongs_to_the_link_is_refused_loudly(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        with pytest.raises(ValueError, match="Acknowledgement is the link's"):
            hub.upstream.receive("edge-1", 5, Acknowledgement("m"), Message(), 1, 1)


async def test_a_thousand_reports_are_merged_and_delay_nobody(tmp_path: Path) -> None:
    """C30: a node that comes back with a thousand reports."""
    async with open_hub(tmp_path) as hub:
        for number in range(1000):
            hub.receive("busy", 5, report(f"p{number % 10}", str(number)))
            if number == 500:
                hub.receive("busy", 5, report("p0", "gone", operation="delete"))
        for number in range(5):
            hub.receive("busy", 5, report(f"list-{number}", operation="insert"))
        hub.receive("calm", 9, report("q", "ready"))
        # 10 resources, the one that was deleted in between twice, and what is never merged.
        waiting = 10 + 2 + 5 + 1
        assert hub.metric("merged_total") == 1000 + 1 + 5 + 1 - waiting
        assert hub.metric("waiting") == waiting
        async with hub.subscriber("edgecontroller") as cloud:
            got = await cloud.take(waiting)
        assert [one.node_id for one in got].index("calm") <= 1
        p0 = [one.message for one in got if one.message.resource.endswith("/p0")]
        assert [(one.operation, one.content) for one in p0] == [
            ("update", b'"500"'),
            ("delete", b'"gone"'),
            ("update", b'"990"'),
        ]
        last = [one.message.content for one in got if one.message.resource.endswith("/p7")]
        assert last == [b'"997"']


async def test_a_synchronous_request_that_nobody_serves_is_answered_at_once(tmp_path: Path) -> None:
    """C32: with the module named, before `receive` returns."""
    async with open_hub(tmp_path) as hub, hub.subscriber("devicecontroller"):
        hub.receive("edge-1", 5, request("q1"))
        ((node_id, epoch, message),) = hub.edge.answers
        assert (node_id, epoch) == ("edge-1", 5)
        assert (message.source, message.operation) == ANSWER
        assert (message.parent_id, message.resource) == ("q1", "default/secret/s")
        assert json.loads(message.content) == "nobody serves module edgecontroller now"
        assert message.id
        assert message.timestamp_ms > 0
        assert hub.metric("waiting") == 0


async def test_just_after_a_start_requests_wait_for_what_other_dispatchers_serve(tmp_path: Path) -> None:
    """C32, C39: in the order of their node; those that nobody serves are answered then."""
    async with open_hub(tmp_path, is_shared=True) as hub:
        for message_id in ("q1", "q2"):
            hub.receive("edge-1", 5, request(message_id))
            hub.receive("edge-1", 5, request(f"twin-{message_id}", source="twin"))
        assert hub.edge.answers == []
        assert hub.metric("waiting") == 4
        async with hub.subscriber("devicecontroller") as cloud:
            got = await cloud.take(2)
            assert [one.message.id for one in got] == ["twin-q1", "twin-q2"]
            hub.upstream.all_arrived()
        assert [answer.parent_id for _, _, answer in hub.edge.answers] == ["q1", "q2"]
        (_, _, message) = hub.edge.answers[0]
        assert (message.source, message.operation, message.resource) == (*ANSWER, "default/secret/s")
        assert hub.metric("waiting") == 0
        hub.receive("edge-1", 5, request("q3"))
        assert hub.edge.answers[-1][2].parent_id == "q3"


async def test_reports_that_nobody_serves_go_on_waiting_when_all_have_arrived(tmp_path: Path) -> None:
    async with open_hub(tmp_path, is_shared=True) as hub:
        hub.receive("edge-1", 5, report("p1", "Running"))
        hub.receive("edge-1", 5, request("q1"))
        hub.upstream.all_arrived()
        assert hub.metric("waiting") == 1
        async with hub.subscriber("edgecontroller") as cloud:
            (delivery,) = await cloud.take(1)
            assert delivery.message.id.startswith("p1")


async def test_a_synchronous_request_goes_to_its_subscriber(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, hub.subscriber("edgecontroller") as cloud:
        hub.receive("edge-1", 5, request("q1"))
        (delivery,) = await cloud.next()
        assert delivery.message.id == "q1"
        assert hub.edge.answers == []


async def test_a_subscriber_that_dies_loses_nothing(tmp_path: Path) -> None:
    """C32: what it had not acknowledged goes to another, in order, marked."""
    async with open_hub(tmp_path) as hub:
        async with hub.subscriber("edgecontroller", credit=6) as first:
            for number in range(10):
                hub.receive("edge-1", 5, report("p", str(number), operation="insert"))
            held = await first.next(6)
            await first.acknowledge(held[0], held[1], held[3])
            held += await first.next(3)  # it got room for these: the acknowledgement was handled
        async with hub.subscriber("edgecontroller") as second:
            rest = await second.next(7)
            assert [json.loads(one.message.content) for one in rest] == ["2", "4", "5", "6", "7", "8", "9"]
            assert [one.redelivered for one in rest] == [True] * 6 + [False]
            assert hub.metric("redelivered_total") == 6
        await hub.until(lambda: hub.metric("subscribers") == 0)


async def test_two_subscribers_share_nodes_but_not_a_nodes_order(tmp_path: Path) -> None:
    async with (
        open_hub(tmp_path) as hub,
        hub.subscriber("edgecontroller", credit=1) as first,
        hub.subscriber("edgecontroller", credit=1) as second,
    ):
        hub.receive("a", 1, report("p", "1", operation="insert"))
        hub.receive("b", 1, report("p", "1", operation="insert"))
        hub.receive("a", 1, report("p", "2", operation="insert"))
        (one,), (two,) = await first.next(), await second.next()
        assert {one.node_id, two.node_id} == {"a", "b"}
        holder = first if one.node_id == "a" else second
        await holder.acknowledge(one if holder is first else two)
        (after,) = await holder.next()
        assert (after.node_id, after.message.content) == ("a", b'"2"')


async def test_a_subscriber_gets_whatever_is_ready_at_once(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        for number in range(600):
            hub.receive(f"node-{number % 7}", 1, report("p", str(number), operation="insert"))
        async with hub.subscriber("edgecontroller", credit=1000) as cloud:
            await cloud.next(600)
            assert cloud.batches == [256, 256, 88]


async def test_acknowledgements_of_unknown_deliveries_are_counted(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, hub.subscriber("edgecontroller", credit=1) as cloud:
        hub.receive("a", 1, report("p", "1"))
        (delivery,) = await cloud.next()
        await cloud.acknowledge(77, 0, delivery, delivery)
        hub.receive("a", 1, report("p", "2"))
        await cloud.next()
        assert hub.metric("unknown_acknowledgements_total") == 3


@pytest.mark.parametrize(
    ("first", "detail"),
    [
        (SubscribeRequest(acknowledged=[1]), "subscription: the first request of a stream says"),
        (SubscribeRequest(subscription=Subscription()), "subscription.modules: name at least one module"),
        (SubscribeRequest(subscription=Subscription(modules=["Router"])), "got 'Router'"),
        (
            SubscribeRequest(subscription=Subscription(modules=["a" * 64])),
            "subscription.modules: a module is",
        ),
        (
            SubscribeRequest(subscription=Subscription(modules=[f"m{n}" for n in range(65)])),
            "subscription.modules: at most 64, got 65",
        ),
        (
            SubscribeRequest(subscription=Subscription(modules=["router"], max_unacknowledged=65_537)),
            "subscription.max_unacknowledged: at most 65536, got 65537",
        ),
    ],
)
async def test_a_malformed_subscription_is_refused_with_what_is_wrong(
    tmp_path: Path, first: SubscribeRequest, detail: str
) -> None:
    async with open_hub(tmp_path) as hub:
        call: Any = DispatcherServiceStub(hub.channel).Subscribe()
        await call.write(first)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert detail in str(caught.value.details())
        assert hub.metric("subscribers") == 0


async def test_a_second_subscription_ends_the_stream_and_frees_what_it_held(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, hub.subscriber("edgecontroller") as cloud:
        hub.receive("a", 1, report("p", "1"))
        await cloud.next()
        await cloud.call.write(SubscribeRequest(subscription=Subscription(modules=["router"])))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cloud.next()
        assert error_reason(caught.value) == "INVALID_FIELD"
        async with hub.subscriber("edgecontroller") as other:
            (delivery,) = await other.next()
            assert delivery.redelivered


async def test_a_caller_that_says_nothing_more_ends_its_subscription(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub:
        async with hub.subscriber("edgecontroller") as cloud:
            await cloud.call.done_writing()
            assert await cloud.call.read() is grpc.aio.EOF
            assert await cloud.call.code() == grpc.StatusCode.OK
        silent: Any = DispatcherServiceStub(hub.channel).Subscribe()
        await silent.done_writing()
        assert await silent.read() is grpc.aio.EOF
        await hub.until(lambda: hub.metric("subscribers") == 0)


async def test_the_cluster_ca_is_answered_by_the_hub_itself(tmp_path: Path) -> None:
    async with open_hub(tmp_path, cluster_ca=b"-----BEGIN CERTIFICATE-----\nAA\n") as hub:
        hub.receive("edge-1", 5, request("q1", resource="k8s/ca.crt"))
        ((_, _, message),) = hub.edge.answers
        assert (message.operation, message.parent_id, message.resource) == ("response", "q1", "k8s/ca.crt")
        assert json.loads(message.content) == "-----BEGIN CERTIFICATE-----\nAA\n"


async def test_without_a_cluster_ca_the_request_gets_no_answer(tmp_path: Path) -> None:
    """An edge writes whatever comes into the file of its CA: an `error` would end it."""
    async with open_hub(tmp_path, cluster_ca=None) as hub:
        hub.receive("edge-1", 5, request("q1", resource="k8s/ca.crt"))
        assert hub.edge.answers == []
        assert hub.metric("unanswered_total", reason="no_ca") == 1


async def test_a_request_dropped_for_want_of_room_is_answered(tmp_path: Path) -> None:
    """Invariant 9: whoever waits for an answer is told."""
    settings = UpstreamSettings(most_waiting_per_node=1)
    async with (
        open_hub(tmp_path, settings=settings) as hub,
        hub.subscriber("edgecontroller", credit=1) as cloud,
    ):
        hub.receive("edge-1", 5, request("q1"))
        await cloud.next()
        hub.receive("edge-1", 5, request("q2"))
        ((_, _, message),) = hub.edge.answers
        assert (message.operation, message.parent_id, message.resource) == ("error", "q2", "default/secret/s")
        assert hub.metric("dropped_total", reason="node_messages") == 1


async def test_a_sampled_message_leaves_its_spans(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider, "dispatcher")
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with open_hub(tmp_path, tracing=tracing) as hub, hub.subscriber("edgecontroller") as cloud:
        plain, traced = report("p", "1"), report("q", "2")
        traced.traceparent = parent
        hub.receive("edge-1", 5, plain)
        hub.receive("edge-1", 5, traced)
        got = await cloud.take(2)
        hub.receive("edge-1", 5, report("r"))
        await cloud.next()
        while len(exporter.get_finished_spans()) < 2:
            hub.receive("edge-1", 5, report("s", operation="insert"))
            await cloud.take(1)
        received, handover = exporter.get_finished_spans()
        assert (received.name, handover.name) == ("receive", "handover")
        assert received.parent is not None
        assert handover.parent is not None
        assert f"{received.parent.span_id:016x}" == "b7ad6b7169203331"
        assert handover.parent.span_id == received.context.span_id
        assert got[1].message.traceparent.split("-")[2] == f"{received.context.span_id:016x}"
        assert dict(handover.attributes or {}) == {
            "messaging.system": "cloudhub",
            "messaging.destination.name": "edgecontroller",
            "messaging.message.id": "q-2-update",
            "cloudhub.node.id": "edge-1",
            "cloudhub.session.epoch": 5,
            "cloudhub.redelivered": False,
        }
        assert received.attributes is not None
        assert received.attributes["messaging.destination.name"] == "edgecontroller"
    tracing.close()


async def test_a_subscriber_that_reads_nothing_is_given_up_with_all_it_held(tmp_path: Path) -> None:
    """C32: also when its stream ends in the middle of a write that never got through."""
    async with open_hub(tmp_path) as hub:
        async with hub.subscriber("edgecontroller", credit=1000):
            for number in range(200):
                message = report("p", str(number), operation="insert")
                message.content = b"x" * 100_000
                hub.receive(f"node-{number}", 1, message)
            await hub.upstream.until_taken()
        await hub.until(lambda: hub.metric("subscribers") == 0)
        assert hub.metric("waiting") == 200


async def test_subscribers_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    """C2: no task and no queue object outlives a subscription."""
    async with open_hub(tmp_path) as hub:
        settled = 0
        for number in range(30):
            async with hub.subscriber("edgecontroller", f"module-{number}") as cloud:
                hub.receive("a", 1, report("p", str(number)))
                await cloud.take(1)
                settled += 1
                await hub.until(lambda settled=settled: hub.metric("settled_total") == settled)  # type: ignore[misc]
            await hub.until(lambda: hub.metric("subscribers") == 0)
        readers = [one for one in asyncio.all_tasks() if one.get_name().startswith("subscription-")]
        if readers:
            _, alive = await asyncio.wait(readers, timeout=10)
            assert not alive
        assert hub.metric("waiting") == 0

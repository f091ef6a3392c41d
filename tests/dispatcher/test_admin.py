"""What operators ask and do: `services.dispatcher.admin`."""

from collections.abc import AsyncIterator
from typing import Any, cast
from unittest import mock

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.resources_pb2 import DispatcherResources, GetResourcesRequest
from services.dispatcher.policy import PolicySettings
from services.dispatcher.servicer import DispatcherServicer
from services.dispatcher.upstream.subscriptions import UpstreamServicer
from services.runtime.errors import InvalidRequest, NotFound
from tests.support.dispatcher import DeliveryHalf, request, running_delivery_half

NODE = "edge-1"
NO_CONTEXT: Any = None
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-00"


@pytest.fixture
async def half() -> AsyncIterator[DeliveryHalf]:
    async with running_delivery_half(PolicySettings(window_messages=1)) as running:
        yield running


async def published(half: DeliveryHalf, node_id: str, *message_ids: str) -> None:
    """Messages of objects of their own."""
    for message_id in message_ids:
        content = f'{{"metadata":{{"uid":"uid-{message_id}"}}}}'.encode()
        what = request(node_id, content=content, message_id=message_id, resource=f"default/pod/{message_id}")
        (response,) = await half.publish(what, traceparent=TRACE)
        assert response.outcomes[0].outcome == pb.OUTCOME_ACCEPTED


async def refused(half: DeliveryHalf, message_id: str) -> None:
    """The edge sends a negative acknowledgement, and that is on record."""
    half.delivery.refused(
        half.delivery.sessions[NODE], request(parent_id=message_id).message, "no space left"
    )
    await half.settled()


async def explain(half: DeliveryHalf, **named: Any) -> pb.ExplainDeliveryResponse:
    return await half.admin.ExplainDelivery(pb.ExplainDeliveryRequest(node_id=NODE, **named), NO_CONTEXT)


async def test_pages_and_histories_of_long_names_fit_into_answers(
    half: DeliveryHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41: a page ends early, its token goes on behind it; of a history the newest lines are told."""
    await half.connect()
    await published(half, NODE, *(f"m{number}" for number in range(6)))
    whole = await half.admin.InspectNode(pb.InspectNodeRequest(node_id=NODE), NO_CONTEXT)
    history = (await explain(half, message_id="m0")).events
    assert len(history) == 1
    await refused(half, "m0")
    monkeypatch.setattr("services.dispatcher.admin.MAX_ANSWER_BYTES", whole.objects[0].ByteSize() * 2 + 60)
    found: list[pb.ObjectDelivery] = []
    token, pages = "", 0
    while pages == 0 or token:
        page = await half.admin.InspectNode(pb.InspectNodeRequest(node_id=NODE, page_token=token), NO_CONTEXT)
        found += page.objects
        token, pages = page.next_page_token, pages + 1
    assert pages > 2
    assert [one.message_id for one in found] == [one.message_id for one in whole.objects]
    monkeypatch.setattr("services.dispatcher.admin.MAX_ANSWER_BYTES", 1)
    assert [event.kind for event in (await explain(half, message_id="m0")).events] == ["parked"]


async def test_nodes_are_listed_with_their_figures(half: DeliveryHalf) -> None:
    await half.connect()
    await published(half, NODE, "m1", "m2")
    await refused(half, "m1")
    await published(half, "edge-2", "m3")
    response = await half.admin.ListNodes(pb.ListNodesRequest(), NO_CONTEXT)
    one, two = response.nodes
    assert (one.node_id, one.connected, one.epoch, one.pending, one.parked, one.in_flight, one.last_seq) == (
        NODE,
        True,
        1,
        2,
        1,
        1,
        2,
    )
    assert one.oldest_pending.ToMilliseconds() == half.clock.wall_ms()
    assert not one.HasField("last_ack")
    assert (two.node_id, two.connected, two.epoch, two.in_flight) == ("edge-2", False, 0, 0)
    assert response.next_page_token == ""


async def test_nodes_are_listed_in_pages(half: DeliveryHalf) -> None:
    for number in range(5):
        await published(half, f"n{number}", "m")
    pages, token = list[list[str]](), ""
    while True:
        what = pb.ListNodesRequest(page_size=2, page_token=token)
        response = await half.admin.ListNodes(what, NO_CONTEXT)
        pages.append([node.node_id for node in response.nodes])
        token = response.next_page_token
        if not token:
            break
    assert pages == [["n0", "n1"], ["n2", "n3"], ["n4"]]


async def test_nodes_are_filtered(half: DeliveryHalf) -> None:
    await published(half, "old-1", "m")
    half.clock.advance(100)
    await published(half, "new-1", "m")

    async def listed(**only: Any) -> list[str]:
        response = await half.admin.ListNodes(pb.ListNodesRequest(**only), NO_CONTEXT)
        return [node.node_id for node in response.nodes]

    late = pb.ListNodesRequest()
    late.oldest_pending_over.FromSeconds(50)
    assert await listed(node_id_prefix="new") == ["new-1"]
    assert await listed(only_parked=True) == []
    assert await listed(oldest_pending_over=late.oldest_pending_over) == ["old-1"]


async def test_a_node_is_inspected_page_by_page(half: DeliveryHalf) -> None:
    await half.connect()
    await published(half, NODE, "m1", "m2", "m3")
    first = await half.admin.InspectNode(pb.InspectNodeRequest(node_id=NODE, page_size=2), NO_CONTEXT)
    assert first.node.pending == 3
    assert [(row.message_id, row.state) for row in first.objects] == [
        ("m1", pb.DELIVERY_STATE_IN_FLIGHT),
        ("m2", pb.DELIVERY_STATE_PENDING),
    ]
    row = first.objects[0]
    assert (row.object_key, row.resource, row.operation) == ("uid-m1", "default/pod/m1", "update")
    assert (row.version, row.floor, row.acknowledged_version, row.seq) == ("1", "1", "", 1)
    assert row.accepted_at.ToMilliseconds() == half.clock.wall_ms()
    assert not row.HasField("expires_at")
    second = await half.admin.InspectNode(
        pb.InspectNodeRequest(node_id=NODE, page_size=2, page_token=first.next_page_token), NO_CONTEXT
    )
    assert [row.message_id for row in second.objects] == ["m3"]
    assert second.next_page_token == ""


async def test_an_unknown_node_is_not_found_by_any_call_about_one(half: DeliveryHalf) -> None:
    """C41: a misspelt id is no success that does nothing."""
    nobody: Any = {"node_id": "nobody"}
    for call in (
        half.admin.InspectNode(pb.InspectNodeRequest(**nobody), NO_CONTEXT),
        half.admin.ExplainDelivery(pb.ExplainDeliveryRequest(**nobody, object_key="k"), NO_CONTEXT),
        half.admin.Redeliver(pb.RedeliverRequest(**nobody), NO_CONTEXT),
        half.admin.Purge(pb.PurgeRequest(**nobody, all=True), NO_CONTEXT),
        half.admin.ResyncNode(pb.ResyncNodeRequest(**nobody), NO_CONTEXT),
    ):
        with pytest.raises(NotFound, match="the hub knows no node nobody") as caught:
            await call
        assert (caught.value.reason, caught.value.metadata) == ("NODE_UNKNOWN", nobody)
    await published(half, "edge-2", "m1")
    known = await half.admin.Redeliver(pb.RedeliverRequest(node_id="edge-2"), NO_CONTEXT)
    assert known.redelivered == 0


async def test_an_object_is_explained_by_its_path_too(half: DeliveryHalf) -> None:
    """C41: who reads a manifest knows the path; the answer says which object that is."""
    await half.connect()
    await published(half, NODE, "m1")
    by_path, by_uid = (
        await explain(half, object_key="default/pod/m1"),
        await explain(half, object_key="uid-m1"),
    )
    assert by_path == by_uid
    assert (by_path.object.object_key, by_path.object.resource) == ("uid-m1", "default/pod/m1")
    assert len(by_path.events) == 1
    await refused(half, "m1")
    again = pb.RedeliverRequest(node_id=NODE, object_key="default/pod/m1")
    assert (await half.admin.Redeliver(again, NO_CONTEXT)).redelivered == 1
    for call in (
        half.admin.Redeliver(pb.RedeliverRequest(node_id=NODE, object_key="default/pod/m9"), NO_CONTEXT),
        half.admin.Purge(pb.PurgeRequest(node_id=NODE, object_key="default/pod/m9"), NO_CONTEXT),
    ):
        with pytest.raises(NotFound, match="has no object default/pod/m9"):
            await call


async def test_everything_of_a_node_is_listed_page_by_page(half: DeliveryHalf) -> None:
    session = await half.connect()
    await published(half, NODE, "m1", "m2", "m3")
    half.delivery.acknowledged(session, request(parent_id="m1").message)
    await half.settled()
    pages, token = list[list[pb.ObjectDelivery]](), ""
    while not pages or token:
        what = pb.InspectNodeRequest(node_id=NODE, page_size=2, page_token=token, all=True)
        answer = await half.admin.InspectNode(what, NO_CONTEXT)
        pages.append(list(answer.objects))
        token = answer.next_page_token
    assert [[one.object_key for one in page] for page in pages] == [["uid-m1", "uid-m2"], ["uid-m3"]]
    has, waits = pages[0]
    assert (has.acknowledged_version, has.acknowledged_at.ToMilliseconds()) == ("1", half.clock.wall_ms())
    assert not waits.HasField("acknowledged_at")
    await half.admin.ResyncNode(pb.ResyncNodeRequest(node_id=NODE), NO_CONTEXT)
    (lost, *_) = (
        await half.admin.InspectNode(pb.InspectNodeRequest(node_id=NODE, all=True), NO_CONTEXT)
    ).objects
    assert (lost.acknowledged_version, lost.HasField("acknowledged_at")) == ("", False)
    with pytest.raises(NotFound):
        await half.admin.InspectNode(pb.InspectNodeRequest(node_id="nobody", all=True), NO_CONTEXT)


async def test_an_object_is_looked_for_on_every_node(
    half: DeliveryHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41: pages have as many nodes as asked for, and as an answer has room for."""
    for node_id, message_id in (("n1", "m1"), ("n2", "m2"), ("n3", "m1")):
        await published(half, node_id, message_id)

    async def found(**asked: Any) -> tuple[list[tuple[str, str]], str]:
        request = pb.FindObjectRequest(object="default/pod/m1", **asked)
        answer = await half.admin.FindObject(request, NO_CONTEXT)
        return [(one.node_id, one.object.object_key) for one in answer.nodes], answer.next_page_token

    assert await found() == ([("n1", "uid-m1"), ("n2", ""), ("n3", "uid-m1")], "")
    assert (await found(node_id_prefix="n2"))[0] == [("n2", "")]
    first, token = await found(page_size=2)
    assert (len(first), await found(page_token=token)) == (2, ([("n3", "uid-m1")], ""))
    monkeypatch.setattr("services.dispatcher.admin.MAX_ANSWER_BYTES", 1)
    first, token = await found()
    assert (first, (await found(page_token=token))[0]) == ([("n1", "uid-m1")], [("n2", "")])
    with pytest.raises(InvalidRequest, match="object: should be"):
        await half.admin.FindObject(pb.FindObjectRequest(), NO_CONTEXT)


def served(half: DeliveryHalf) -> DispatcherServicer:
    upstream = cast("UpstreamServicer", None)
    return DispatcherServicer(half.publishing, upstream, half.outbox, half.admin.explain_message)


async def test_a_publisher_is_told_where_its_message_is_and_no_more(half: DeliveryHalf) -> None:
    servicer = served(half)
    await half.connect()
    await published(half, NODE, "m1")

    async def asked(message_id: str) -> pb.ExplainMessageResponse:
        request = pb.ExplainMessageRequest(node_id=NODE, message_id=message_id)
        return await servicer.ExplainMessage(request, NO_CONTEXT)

    with mock.patch.object(half.outbox, "history", side_effect=AssertionError("it may be asked often")):
        assert (await asked("m1")).state == pb.DELIVERY_STATE_IN_FLIGHT
    await refused(half, "m1")
    told = await asked("m1")
    assert (told.state, "no space left" in told.explanation) == (pb.DELIVERY_STATE_PARKED, True)
    with pytest.raises(NotFound, match="has no message m2"):
        await asked("m2")
    # Whatever else stands under the node is not shown by its object.
    with pytest.raises(InvalidRequest, match="message_id: should be the id"):
        await asked("")


async def test_whoever_publishes_can_ask_which_nodes_are_unknown(half: DeliveryHalf) -> None:
    """C41: a publish to a node that never connected counts; whoever wants no misspelt id asks first."""
    servicer = served(half)
    await half.connect()
    await published(half, "edge-2", "m1")

    async def unknown(*node_ids: str) -> list[str]:
        request = pb.FindUnknownNodesRequest(node_ids=node_ids)
        return list((await servicer.FindUnknownNodes(request, NO_CONTEXT)).node_ids)

    assert await unknown("edge-9", NODE, "edge-2", "edge-8", "edge-9") == ["edge-9", "edge-8"]
    assert await unknown() == []
    with pytest.raises(InvalidRequest, match="node_ids: should be a node id"):
        await unknown("edge-9", "Edge_9")
    with pytest.raises(InvalidRequest, match="10001 nodes; at most 10000"):
        await unknown(*(f"n{number}" for number in range(10_001)))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"page_token": "!!"}, "page_token"),
        ({"page_token": "4pyT"}, "page_token"),  # a tick
        ({"page_token": "wrI="}, "page_token"),  # a digit, but no decimal one
        ({"page_token": "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk="}, "page_token"),  # beyond 64 bits
        ({"page_size": 1001}, "page_size"),
        ({"node_id": "Not A Node"}, "node_id"),
        ({"node_id": ""}, "node_id"),
    ],
)
async def test_a_malformed_inspection_names_its_field(
    half: DeliveryHalf, fields: dict[str, Any], field: str
) -> None:
    """Invariant 10."""
    await published(half, NODE, "m1")
    with pytest.raises(InvalidRequest) as fault:
        await half.admin.InspectNode(pb.InspectNodeRequest(**{"node_id": NODE, **fields}), NO_CONTEXT)
    assert fault.value.field == field


async def test_a_name_that_no_database_holds_is_refused_with_its_field(half: DeliveryHalf) -> None:
    """Invariant 10: PostgreSQL knows no NUL; the caller is told, not sent away until the store is back."""
    nul: dict[str, Any] = {"node_id": NODE, "object_key": "a\0"}
    for field, call in (
        ("object_key", half.admin.ExplainDelivery(pb.ExplainDeliveryRequest(**nul), NO_CONTEXT)),
        ("object_key", half.admin.Redeliver(pb.RedeliverRequest(**nul), NO_CONTEXT)),
        ("object_key", half.admin.Purge(pb.PurgeRequest(**nul), NO_CONTEXT)),
        (
            "message_id",
            half.admin.ExplainDelivery(pb.ExplainDeliveryRequest(node_id=NODE, message_id="\0"), NO_CONTEXT),
        ),
        ("node_id_prefix", half.admin.ListNodes(pb.ListNodesRequest(node_id_prefix="\0"), NO_CONTEXT)),
        ("page_token", half.admin.ListNodes(pb.ListNodesRequest(page_token="AA=="), NO_CONTEXT)),
    ):
        with pytest.raises(InvalidRequest) as fault:
            await call
        assert fault.value.field == field


@pytest.mark.parametrize("seconds", [-1, 2**62])
async def test_a_span_of_time_that_no_clock_holds_is_refused(half: DeliveryHalf, seconds: int) -> None:
    """Invariant 10."""
    what = pb.ListNodesRequest()
    what.oldest_pending_over.seconds = seconds
    with pytest.raises(InvalidRequest) as fault:
        await half.admin.ListNodes(what, NO_CONTEXT)
    assert fault.value.field == "oldest_pending_over"


async def test_a_message_is_explained_on_its_whole_way(half: DeliveryHalf) -> None:
    """Invariant 9: each state and each event is told."""
    await published(half, NODE, "m1", "m2")
    absent = await explain(half, message_id="m1")
    assert (absent.state, absent.trace_id) == (pb.DELIVERY_STATE_PENDING, "a" * 32)
    assert "not connected" in absent.explanation
    session = await half.connect()
    await half.settled()
    waiting = await explain(half, object_key="uid-m2")
    assert (waiting.message_id, waiting.state) == ("m2", pb.DELIVERY_STATE_PENDING)
    assert "waits for its turn" in waiting.explanation
    half.delivery.acknowledged(session, request(parent_id="m1").message)
    await half.settled()
    done = await explain(half, message_id="m1")
    assert done.state == pb.DELIVERY_STATE_ACKNOWLEDGED
    assert done.object.acknowledged_version == "1"
    assert [event.kind for event in done.events] == ["accepted", "acknowledged"]
    assert done.events[1].epoch == 1


async def test_a_replaced_message_is_explained_by_its_history(half: DeliveryHalf) -> None:
    for version in ("1", "2"):
        await half.publish(request(NODE, version=version, message_id=f"m{version}"))
    found = await explain(half, message_id="m1")
    assert found.state == pb.DELIVERY_STATE_ENDED
    assert "superseded" in found.explanation
    assert found.object.message_id == "m2"


async def test_a_refused_publish_is_explained(half: DeliveryHalf) -> None:
    await half.connect()
    await half.publish(request(NODE, version="x", message_id="m1"))
    found = await explain(half, message_id="m1")
    assert "VERSION_MALFORMED" in found.explanation
    assert not found.HasField("object")


async def test_an_unknown_message_is_not_found(half: DeliveryHalf) -> None:
    for named in ({"message_id": "m1"}, {"object_key": "uid"}):
        with pytest.raises(NotFound):
            await explain(half, **named)


async def test_an_explanation_is_of_a_message_or_of_an_object(half: DeliveryHalf) -> None:
    with pytest.raises(InvalidRequest):
        await explain(half)
    with pytest.raises(InvalidRequest):
        await explain(half, message_id="m1", object_key="k")


async def test_redeliver_sends_parked_messages_again(half: DeliveryHalf) -> None:
    """C20."""
    await half.connect()
    await published(half, NODE, "m1")
    await refused(half, "m1")
    assert (await explain(half, message_id="m1")).object.parked_reason == "refused by the edge: no space left"
    assert half.stream.frames() == [("m1", False)]
    response = await half.admin.Redeliver(pb.RedeliverRequest(node_id=NODE), NO_CONTEXT)
    assert response.redelivered == 1
    await half.settled()
    assert (await explain(half, message_id="m1")).object.parked_reason == ""
    assert half.metrics.value("rereads_total") == 1


async def test_purge_drops_what_is_pending_and_forgets_it_here(half: DeliveryHalf) -> None:
    await half.connect()
    await published(half, NODE, "m1", "m2")
    response = await half.admin.Purge(pb.PurgeRequest(node_id=NODE, object_key="uid-m1"), NO_CONTEXT)
    assert response.purged == 1
    await half.settled()
    assert half.stream.frames() == [("m1", False), ("m2", False)]
    assert half.delivery.sessions[NODE].policy.in_flight == 1
    response = await half.admin.Purge(pb.PurgeRequest(node_id=NODE, all=True), NO_CONTEXT)
    assert response.purged == 1


async def test_a_purge_of_everything_has_to_be_said(half: DeliveryHalf) -> None:
    for what in (pb.PurgeRequest(node_id=NODE), pb.PurgeRequest(node_id=NODE, object_key="k", all=True)):
        with pytest.raises(InvalidRequest):
            await half.admin.Purge(what, NO_CONTEXT)


async def test_resync_lets_equal_versions_in_again(half: DeliveryHalf) -> None:
    """C13."""
    session = await half.connect()
    await published(half, NODE, "m1")
    half.delivery.acknowledged(session, request(parent_id="m1").message)
    await half.settled()
    response = await half.admin.ResyncNode(pb.ResyncNodeRequest(node_id=NODE), NO_CONTEXT)
    assert response.objects == 1
    await published(half, NODE, "m1")


async def resources(half: DeliveryHalf) -> DispatcherResources:
    return await half.admin.GetResources(GetResourcesRequest(), NO_CONTEXT)


async def test_what_is_held_is_counted_and_goes_with_the_session(half: DeliveryHalf) -> None:
    """C2, C3."""
    await published(half, "edge-2", "m0")
    before = await resources(half)
    assert (before.sessions, before.queued_messages, before.outbox_operations) == (0, 0, 0)
    session = await half.connect()
    await published(half, NODE, "m1", "m2", "m3")
    assert half.delivery.direct(session, Message(id="d1"), 10)
    during = await resources(half)
    assert (during.sessions, during.queued_messages) == (1, 3)
    assert (during.in_flight_messages, during.direct_messages) == (1, 1)
    assert during.process.tasks == before.process.tasks
    half.delivery.remove(session)
    await half.settled()
    after = await resources(half)
    assert (after.sessions, after.queued_messages, after.direct_messages) == (0, 0, 0)

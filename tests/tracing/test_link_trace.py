"""A link's trace from its request to its end, and what the logs say of it; made by real processes."""

import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from cloudhub.v1 import sessions_pb2
from tests.support.edge_peer import PROJECT
from tests.support.otlp import OtlpReceiver
from tests.tracing.cloud import CloudProgram
from tests.tracing.hub import HubProcesses

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


async def test_a_links_trace_goes_from_its_request_over_the_registry_to_its_end(
    hub: HubProcesses, receiver: OtlpReceiver
) -> None:
    node = "edge-1"
    async with hub.peers.link(node):
        connect = await receiver.one("connect", cloudhub__node__id=node)
        link = await receiver.one("link", connect.trace_id)
        admit = await receiver.one("admit", connect.trace_id)
    ends = await receiver.wait_for("disconnect", connect.trace_id, count=2)
    assert link.parent_id == ""
    assert link.attributes["cloudhub.node.id"] == node
    assert (connect.service, connect.instance) == ("cloudhub-connector", "connector-1")
    assert connect.attributes["cloudhub.outcome"] == "admitted"
    assert connect.attributes["cloudhub.project.id"] == PROJECT
    assert connect.attributes["network.protocol.name"] == "websocket"
    assert (admit.service, admit.instance) == ("cloudhub-sessions", "sessions-1")
    assert admit.attributes["cloudhub.outcome"] == "opened"
    assert connect.parent_id == link.span_id
    assert connect.start_ns <= admit.start_ns <= admit.end_ns <= connect.end_ns
    assert {end.service for end in ends} == {"cloudhub-connector", "cloudhub-dispatcher"}
    epoch = connect.attributes["cloudhub.session.epoch"]
    for span in (admit, *ends):
        assert span.parent_id == link.span_id
        assert span.attributes["cloudhub.node.id"] == node
        assert span.attributes["cloudhub.session.epoch"] == epoch
    assert {end.attributes["cloudhub.reason"] for end in ends} == {"edge_closed"}


async def test_a_session_that_the_hub_ends_says_why(
    hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    async with hub.peers.link("edge-evicted") as peer:
        connect = await receiver.one("connect", cloudhub__node__id="edge-evicted")
        await cloud.sessions.EvictSession(
            sessions_pb2.EvictSessionRequest(node_id="edge-evicted"), timeout=20
        )
        await peer.wait_closed()
    ends = await receiver.wait_for("disconnect", connect.trace_id, count=2)
    assert {end.attributes["cloudhub.reason"] for end in ends} == {"evicted"}


async def test_a_link_over_a_limit_has_the_reason_in_its_trace(
    hub: HubProcesses, receiver: OtlpReceiver, cloud: CloudProgram
) -> None:
    """C5 and C7."""
    project = "small-project"
    await cloud.sessions.SetLimits(sessions_pb2.SetLimitsRequest(projects={project: 1}), timeout=20)

    def of_project(node: str) -> dict[str, Any]:
        headers = {"Node_id": node, "Project_id": project, "Connectionuse": "msg"}
        return {"headers": headers, "path": f"/{project}/{node}/events"}

    async with hub.peers.link("edge-first", **of_project("edge-first")):
        with pytest.raises(InvalidStatus) as refused:
            await hub.peers.open("edge-second", **of_project("edge-second"))
    assert refused.value.response.status_code == 429
    connect = await receiver.one("connect", cloudhub__node__id="edge-second")
    assert connect.attributes["cloudhub.outcome"] == "node_limit"
    assert connect.attributes["cloudhub.failed"] is True
    assert connect.error is not None
    assert project in connect.error
    admit = await receiver.one("admit", connect.trace_id)
    assert admit.parent_id == connect.parent_id
    assert admit.attributes["cloudhub.outcome"] == "node_limit"
    assert admit.error is not None


async def test_a_link_with_a_false_name_has_the_reason_in_a_trace(
    hub: HubProcesses, receiver: OtlpReceiver
) -> None:
    """C6: nobody is asked about it, and the name that it claims appears nowhere as a node's."""
    with pytest.raises(InvalidStatus) as refused:
        await hub.peers.open("edge-impostor", path=f"/{PROJECT}/edge-victim/events")
    assert refused.value.response.status_code == 403
    connect = await receiver.one("connect", http__response__status_code=403)
    assert connect.attributes["cloudhub.outcome"] == "certificate_node"
    assert connect.error
    assert receiver.found(cloudhub__node__id="edge-victim") == []
    assert receiver.found(trace_id=connect.trace_id) == [connect]


async def test_logs_are_json_and_name_the_links_trace(hub: HubProcesses, receiver: OtlpReceiver) -> None:
    node = "edge-logged"
    async with hub.peers.link(node):
        connect = await receiver.one("connect", cloudhub__node__id=node)
    await receiver.wait_for("disconnect", connect.trace_id, count=2)
    events: dict[str, dict[str, Any]] = {}
    for service in ("connector", "dispatcher"):
        for line in hub.log(service).splitlines():
            event = json.loads(line)
            if event.get("node") == node:
                assert event["service"] == service
                assert event["instance"] == f"{service}-1"
                events[event["event"]] = event
    assert set(events) == {"link.opened", "link.closed", "session.opened", "session.closed"}
    for event in events.values():
        assert event["trace_id"] == connect.trace_id
        assert event["epoch"] == connect.attributes["cloudhub.session.epoch"]
    assert events["link.closed"]["reason"] == events["session.closed"]["reason"] == "edge_closed"

"""What operators see of nodes that do something odd, through a whole hub."""

from pathlib import Path

from structlog.testing import capture_logs

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.takeovers import MANY_TAKEOVERS
from tests.hub.test_large_frames import noted
from tests.support.certs import TestAuthority
from tests.support.hub import request, running_hub


async def test_two_agents_of_one_node_are_visible(tmp_path: Path, authority: TestAuthority) -> None:
    """In the node's history and in the list of nodes, in a metric, and once a minute in the log; a node that
    another link of took over once is not."""
    with capture_logs() as logs:
        async with running_hub(tmp_path, authority) as hub:
            for _ in range(MANY_TAKEOVERS + 3):
                await hub.open_edge("edge-1")
            await hub.open_edge("edge-2")
            async with hub.edge("edge-2"):
                (note,) = await noted(hub, 1)
            assert note.reason.startswith(f"flapping: superseded {MANY_TAKEOVERS} times in ")
            assert "two agents" in note.reason
            assert hub.metric("dispatcher", "node_notices_total", notice="flapping") == 3
            listed = await hub.dispatcher_admin.ListNodes(pb.ListNodesRequest(), timeout=5)
            notes = {node.node_id: node.last_note for node in listed.nodes}
            assert notes["edge-1"].startswith("flapping: ")
            assert notes["edge-2"] == ""
    lines = [line for line in logs if line["event"] == "node.noticed"]
    assert [(line["node"], line["reason"]) for line in lines] == [("edge-1", "flapping")]


async def test_a_deleted_node_that_comes_back_is_visible(tmp_path: Path, authority: TestAuthority) -> None:
    """A stock edge dials again, whatever the close code says."""
    async with running_hub(tmp_path, authority) as hub:
        async with hub.edge("edge-1") as edge:
            deletion = Message(source="edgecontroller", operation="delete", resource="node/edge-1")
            await hub.accept(pb.PublishRequest(message=deletion))
            assert (await edge.closed())[0] == 4003
        async with hub.edge("edge-1"):
            (note,) = await noted(hub, 1)
            assert note.reason.startswith("returned: ")
            assert "as a new node" in note.reason
        async with hub.edge("edge-1"):
            assert len(await noted(hub, 1)) == 1


async def test_versions_that_no_stock_metaserver_keeps_are_visible(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """They are accepted and acknowledged; a program that goes on has a line a minute, and all are counted."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        for version in (2**63 - 1, 2**63, 2**63 + 1, 2**63 + 2):
            await hub.accept(request(version=version))
            await edge.answer(await edge.next())
        (note,) = await noted(hub, 1)
        assert note.reason.startswith(f"version_too_large: version {2**63} of uid-cm1 is above 2^63-1")
        assert hub.metric("dispatcher", "node_notices_total", notice="version_too_large") == 3

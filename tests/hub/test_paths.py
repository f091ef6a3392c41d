"""One path, one object, through a whole hub: what publishers, the edge and operators see."""

from pathlib import Path

from cloudhub.v1 import dispatcher_pb2 as pb
from tests.support.certs import TestAuthority
from tests.support.hub import request, running_hub

ACCEPTED, STALE, REJECTED = pb.OUTCOME_ACCEPTED, pb.OUTCOME_STALE, pb.OUTCOME_REJECTED


async def test_two_publishers_of_one_path_with_and_without_uid(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C51: version 50 with a uid, then 30 without; then 60 without. The edge never gets the older one, the
    refusal names what is there, and ExplainDelivery tells what replaced it."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        await hub.accept(request(uid="u1", version=50, message_id="m50"))
        await edge.answer(await edge.next())
        await hub.until_state("edge-1", "u1", pb.DELIVERY_STATE_ACKNOWLEDGED)
        (late,) = await hub.publish(request(uid="", version=30, message_id="m30"))
        assert (late.outcome, late.reason) == (STALE, "PATH_TAKEN")
        assert late.detail == "object u1 is there with version 50"
        refused = await hub.explain("edge-1", message_id="m30")
        assert "PATH_TAKEN" in refused.explanation
        await hub.accept(request(uid="", version=60))
        message = await edge.next()
        assert message["header"]["resourceversion"] == "60"
        await edge.answer(message)
        former = await hub.until_state("edge-1", "u1", pb.DELIVERY_STATE_ENDED)
        assert "replaced at its path by default/configmap/cm1 version 60" in former.explanation
        assert [event.kind for event in former.events][-2:] == ["acknowledged", "ended"]
        (delete,) = await hub.publish(request(uid="u1", version=55, operation="delete"))
        assert (delete.outcome, delete.reason) == (STALE, "PATH_TAKEN")
        await edge.gets_nothing(0.1)


async def test_what_is_replaced_before_it_was_sent_is_counted(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C51, invariant 9; and a node with one object under its path gets one message."""
    async with running_hub(tmp_path, authority) as hub:
        await hub.accept(
            request(uid="u1", version=1), request(uid="u2", version=2), request(uid="", version=3)
        )
        assert hub.metric("dispatcher", "ended_total", reason="replaced") == 2
        async with hub.edge() as edge:
            message = await edge.next()
            assert message["header"]["resourceversion"] == "3"
            await edge.answer(message)
            await hub.until_state("edge-1", "default/configmap/cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)
            await edge.gets_nothing(0.1)


async def test_a_nodes_objects_are_bounded_and_another_node_does_not_notice(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C46: the reason, the field and what to do; other objects of the node go on too."""
    async with (
        running_hub(tmp_path, authority, dispatcher={"max_node_objects": 3}) as hub,
        hub.edge() as edge,
        hub.edge("edge-2") as other,
    ):
        for name in ("a", "b", "c"):
            await hub.accept(request(name=name))
            await edge.answer(await edge.next())
        both = await hub.publish(request("edge-1", "edge-2", name="d"))
        assert [one.outcome for one in both] == [REJECTED, ACCEPTED]
        assert (both[0].reason, both[0].field) == ("NODE_QUOTA_OBJECTS", "node_ids")
        assert "3 objects on record" in both[0].detail
        await other.answer(await other.next())
        await hub.accept(request(name="a", version=2), request(name="b", version=2, operation="delete"))
        for _ in range(2):
            await edge.answer(await edge.next())


async def test_a_delete_reaches_the_edge_with_what_both_of_its_stores_need(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C23: whatever its publisher left out; of an object that was never published it is refused."""
    whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm1", "namespace": "default"}}
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        for number, content in enumerate((b"null", b'{"metadata": {"name": "cm1"}}'), 1):
            await hub.accept(request(uid="", version=10 * number, content={"n": number}))
            await edge.answer(await edge.next())
            delete = request(uid="", version=10 * number, operation="delete")
            delete.message.content = content
            await hub.accept(delete)
            message = await edge.next()
            assert (message["route"]["operation"], message["content"]) == ("delete", whole)
            await edge.answer(message)
        web = {"apiVersion": "apps/v1", "kind": "Deployment"}
        names = {"name": "web", "namespace": "shop"}
        await hub.accept(request(uid="", name="web", resource="shop/deployment/web", content=web))
        await edge.answer(await edge.next())
        delete = request(uid="", resource="shop/deployment/web", operation="delete")
        delete.message.content = b"null"
        await hub.accept(delete)
        message = await edge.next()
        assert message["content"] == {**web, "metadata": names}
        await edge.answer(message)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**names, "uid": "pod-1"}}
        await hub.accept(request(resource="shop/pod/web", content=pod))
        await edge.answer(await edge.next())
        delete = request(uid="", resource="shop/pod/web", operation="delete")
        delete.message.content = b"null"
        await hub.accept(delete)
        message = await edge.next()
        assert message["content"] == pod
        await edge.answer(message)
        other = request(name="x", resource="shop/deployment/x", operation="delete", message_id="web")
        (refused,) = await hub.publish(other)
        assert (refused.outcome, refused.reason) == (REJECTED, "OBJECT_INCOMPLETE")
        assert "apiVersion, kind" in refused.detail
        told = await hub.explain("edge-1", message_id="web")
        assert "OBJECT_INCOMPLETE" in told.explanation

"""Links that move between dispatchers of a whole hub: the edge notices nothing."""

from pathlib import Path

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.link_pb2 import CLOSE_REASON_EVICTED
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, StockEdge, request, running_hub
from tests.support.processes import eventually

ACTIVE, CLOSED = sessions_pb2.SESSION_STATE_ACTIVE, sessions_pb2.SESSION_STATE_CLOSED
LEASE = {"lease_seconds": 1.0}


async def until_moved(hub: RunningHub, node_id: str, epoch: int) -> sessions_pb2.Session:
    """The session once it is ACTIVE under a later epoch and its dispatcher is ready."""
    session = await hub.until_session(node_id, lambda one: one.state == ACTIVE and one.epoch > epoch)
    await eventually(
        lambda: any(node_id in part.app.delivery.sessions for part in hub.dispatchers if part.runs)
    )
    return session


async def test_a_draining_dispatcher_hands_its_links_over(tmp_path: Path, authority: TestAuthority) -> None:
    """C37, rolling update: same WebSocket, same session, higher epoch, no connect or disconnect event; what
    was published before and what is published after arrives."""
    async with (
        running_hub(tmp_path, authority, dispatchers=2, shared_outbox=True) as hub,
        hub.edge() as edge,
    ):
        before = await hub.session("edge-1")
        holder = hub.holder("edge-1")
        (other,) = [part for part in hub.dispatchers if part is not holder]
        await hub.accept(request(name="before", version=1), through=holder.name)
        unanswered = await edge.next()
        await holder.stop()
        after = await until_moved(hub, "edge-1", before.epoch)
        assert after.dispatcher_id != before.dispatcher_id
        assert (after.opened_at, after.link) == (before.opened_at, before.link)
        again = await edge.next()
        assert again["header"]["msg_id"] == unanswered["header"]["msg_id"]
        await edge.answer(again)
        await hub.accept(request(name="after", version=1), through=other.name)
        later = await edge.next()
        assert later["route"]["resource"] == "default/configmap/after"
        await edge.answer(later)
        assert hub.metric("sessions", "closes_total", reason="dispatcher_lost") == 0
        assert hub.metric("sessions", "opens_total", outcome="opened") == 1
        assert hub.metric("connector", "transfers_total", outcome="moved") == 1
        assert hub.metric("connector", "links_closed_total", reason="dispatcher_lost") == 0


async def test_a_restart_of_the_only_dispatcher_keeps_its_links(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """Nobody can take them meanwhile: the links stay up and are transferred when it is back."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        before = await hub.session("edge-1")
        await hub.dispatcher.stop()
        assert (await hub.session("edge-1")).state == sessions_pb2.SESSION_STATE_ORPHANED
        await edge.keepalive()
        await hub.dispatcher.start()
        await until_moved(hub, "edge-1", before.epoch)
        await hub.accept(request(version=1))
        await edge.answer(await edge.next())
        await hub.until_state("edge-1", "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)

"""Rows that hold what no version of a service writes: told with their node, and harming no other."""

import asyncio
import sqlite3
from pathlib import Path

import grpc
import pytest
from websockets.exceptions import InvalidStatus

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from services.runtime.rpc import error_info
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, request, running_hub

_ONE, _OTHER = "edge-1", "edge-2"


def _damage(hub: RunningHub, service: str, statement: str) -> None:
    connection = sqlite3.connect(hub.folder / f"{service}.db", isolation_level=None, timeout=5)
    try:
        assert connection.execute(statement).rowcount > 0
    finally:
        connection.close()


async def _refused(hub: RunningHub, node_id: str) -> str:
    """What the edge is told, a 503 with advice: an operator may mend the row meanwhile."""
    with pytest.raises(InvalidStatus) as refused:
        await hub.open_edge(node_id)
    assert refused.value.response.status_code == 503
    assert "Retry-After" in refused.value.response.headers
    return (refused.value.response.body or b"").decode()


async def _opens(hub: RunningHub, node_id: str) -> None:
    async with hub.edge(node_id) as edge:
        await hub.accept(request(node_id, name="probe"))
        message = await edge.next()
        await edge.answer(message)


async def test_a_damaged_session_is_told_and_other_nodes_come_and_go(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """Invariant 10: openings and ends of many nodes share a transaction."""
    async with running_hub(tmp_path, authority) as hub:
        edge = await hub.open_edge(_ONE)
        _damage(hub, "sessions", f"UPDATE node_session SET epoch = 'what' WHERE node_id = '{_ONE}'")
        await edge.connection.close()
        text, _ = await asyncio.gather(_refused(hub, _ONE), _opens(hub, _OTHER))
        assert "edge-1' is damaged" in text
        await hub.until_session(_OTHER, lambda found: found.state == sessions_pb2.SESSION_STATE_CLOSED)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await hub.session(_ONE)
        assert failed.value.code() is grpc.StatusCode.DATA_LOSS
        assert error_info(failed.value) == ("ROW_DAMAGED", {"node_id": _ONE})


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE delivery SET version = 'what' WHERE node_id = '{_ONE}'",
        f"UPDATE delivery SET state = 77 WHERE node_id = '{_ONE}'",
        f"UPDATE node SET last_seq = 'what' WHERE node_id = '{_ONE}'",
    ],
)
async def test_damaged_deliveries_are_told_and_other_nodes_get_theirs(
    tmp_path: Path, authority: TestAuthority, statement: str
) -> None:
    """Invariant 10: claims and publishes of many nodes share a transaction."""
    async with running_hub(tmp_path, authority) as hub:
        await hub.accept(request(_ONE))
        # One that runs alone on its database knows what it has written.
        await hub.dispatcher.stop()
        _damage(hub, "dispatcher", statement)
        await hub.dispatcher.start()
        await hub.attached()
        text, _ = await asyncio.gather(_refused(hub, _ONE), _opens(hub, _OTHER))
        assert "edge-1' is damaged" in text
        first, second = await hub.publish(request(_ONE, _OTHER, version=2))
        assert (first.outcome, second.outcome) == (pb.OUTCOME_UNAVAILABLE, pb.OUTCOME_ACCEPTED)
        assert "edge-1' is damaged" in first.detail
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await hub.dispatcher_admin.InspectNode(pb.InspectNodeRequest(node_id=_ONE), timeout=5)
        assert failed.value.code() is grpc.StatusCode.DATA_LOSS
        assert error_info(failed.value) == ("ROW_DAMAGED", {"node_id": _ONE})

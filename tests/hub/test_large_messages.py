"""Messages that are large by anything: refused, or of a former release and parked. Nobody else notices."""

import sqlite3
import time
from pathlib import Path

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.sizes import MAX_BODY_BYTES
from services.runtime.rpc import MOST_MESSAGE_BYTES
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers
from tests.support.hub import RunningHub, request, running_hub
from tests.support.processes import eventually

_ONE, _OTHER = "edge-1", "edge-2"


def _streams_lost(hub: RunningHub) -> float:
    return sum(
        sample.value
        for metric in hub.connector.app.metrics.streams_lost.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


def _store(hub: RunningHub, node_id: str, message_id: str, body: bytes) -> None:
    """Puts another body into a pending row, as a release without a bound could store it."""
    connection = sqlite3.connect(hub.folder / "dispatcher.db", isolation_level=None, timeout=5)
    try:
        statement = "UPDATE delivery SET message = ? WHERE node_id = ? AND message_id = ?"
        assert connection.execute(statement, (body, node_id, message_id)).rowcount == 1
    finally:
        connection.close()


async def test_extra_fields_count_as_content_does(tmp_path: Path, authority: TestAuthority) -> None:
    """C41: 8 MiB in a field that the hub does not know are REJECTED with that field, and what is just small
    enough arrives at an edge; a bystander of the same connector goes on."""
    async with running_hub(tmp_path, authority) as hub, hub.edge(_ONE) as edge, hub.edge(_OTHER) as other:
        large = request(_ONE, name="large")
        large.message.extra["header.x"] = b'"' + b"x" * 8 * 1024 * 1024 + b'"'
        (outcome,) = await hub.publish(large)
        assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_REJECTED, "MESSAGE_TOO_LARGE")
        assert outcome.field == "message.extra"
        fits = request(_ONE, name="fits")
        fits.message.extra["header.x"] = b'"' + b"x" * 900 * 1024 + b'"'
        await hub.accept(fits)
        await hub.accept(request(_OTHER, name="bystander"))
        await other.answer(await other.next())
        assert len((await edge.next())["header"]["x"]) == 900 * 1024
        inspected = await hub.dispatcher_admin.InspectNode(pb.InspectNodeRequest(node_id=_ONE), timeout=5)
        assert inspected.node.pending_bytes > 900 * 1024


async def test_a_stored_message_that_fits_into_no_batch_is_parked(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C41: rows of a former release, one above what gRPC carries and one above what an edge takes, stop no
    link of the connector, neither at once nor after a restart; they are parked with their reason."""
    async with running_hub(tmp_path, authority) as hub:
        for number, size_bytes in enumerate((MOST_MESSAGE_BYTES, MAX_BODY_BYTES)):
            await hub.accept(request(_ONE, name=f"large-{number}", message_id=f"large-{number}"))
            content = b'"' + b"x" * size_bytes + b'"'
            body = Message(id=f"large-{number}", operation="update", content=content).SerializeToString()
            _store(hub, _ONE, f"large-{number}", body)
        await hub.accept(request(_ONE, name="behind"))
        await hub.dispatcher.stop()
        await hub.dispatcher.start()
        await hub.attached()
        lost = _streams_lost(hub)
        async with hub.edge(_ONE) as edge, hub.edge(_OTHER) as other:
            await hub.accept(request(_OTHER, name="bystander"))
            await other.answer(await other.next())
            behind = await edge.next()
            assert behind["route"]["resource"].endswith("behind")
            await edge.answer(behind)
            for number in (0, 1):
                key = f"uid-large-{number}"
                found = await hub.until_state(_ONE, key, pb.DELIVERY_STATE_PARKED)
                assert "too large to be sent" in found.object.parked_reason
            assert _streams_lost(hub) == lost


async def test_links_that_read_nothing_hold_up_nobody_else(
    tmp_path: Path, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41, invariant 7: 24 nodes that read nothing are sent 900 KiB each; only so much is on its way to their
    connector as it may have, small messages for a bystander come as fast as before, and those that stand
    still give way to a node that waits for a large one. What they were sent stays pending."""
    monkeypatch.setattr("services.dispatcher.policy.STALL_SECONDS", 0.5)
    monkeypatch.setattr("services.dispatcher.policy.SLOWEST_BYTES_PER_SECOND", 1e9)
    limit, large = 4 * 1024 * 1024, 890 * 1024
    changes = {"max_connector_bytes": limit, "lease_seconds": 6.0}
    async with running_hub(tmp_path, authority, dispatcher=changes) as hub, hub.edge(_OTHER) as other:
        peers = EdgePeers(authority, hub.connector.app.edge_port)
        names = [f"silent-{number}" for number in range(24)]
        links = [await peers.upgraded(name, limit=1024) for name in names]
        for _, writer in links:
            writer.transport.pause_reading()  # type: ignore[attr-defined]

        async def times(number: int) -> list[float]:
            took = []
            for _ in range(number):
                began = time.monotonic()
                await hub.accept(request(_OTHER, name=f"small-{time.monotonic_ns()}"))
                await other.answer(await other.next())
                took.append(time.monotonic() - began)
            return sorted(took)

        idle = await times(60)
        await hub.accept(request(*names, name="large", size_bytes=large))
        beside = await times(60)
        assert beside[-1] < 2 * idle[-1] + 0.25, f"p99 {beside[-1]:.3f} s beside, {idle[-1]:.3f} s without"
        room = next(iter(hub.dispatcher.app.delivery.sessions.values())).stream.room
        await eventually(lambda: room.is_full, 10, "as much is on its way as may be")
        assert limit <= room.unwritten_bytes + room.fetching_bytes < limit + 2 * large
        assert hub.metric("connector", "queued_bytes") <= 2 * limit
        # The bystander's own large message waits behind those, and gets its turn.
        await hub.accept(request(_OTHER, name="large", size_bytes=large))
        message = await other.next(20)
        assert message["route"]["resource"].endswith("large")
        await other.answer(message)
        assert hub.metric("dispatcher", "stalled_links_total") >= 1
        for name in names:
            inspected = await hub.dispatcher_admin.InspectNode(pb.InspectNodeRequest(node_id=name), timeout=5)
            assert inspected.node.pending == 1
        for _, writer in links:
            writer.transport.abort()
        await eventually(lambda: room.unwritten_bytes == 0, 10, "nothing is counted that is not on its way")

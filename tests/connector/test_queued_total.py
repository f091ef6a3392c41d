"""Bytes that wait for all edges together: `services.connector.queued_total`, and which links give way."""

from cloudhub.v1 import link_pb2
from services.connector.queued_total import FREE_BYTES, QueuedTotal
from tests.connector.conftest import StartApp
from tests.connector.test_links import _message
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.processes import eventually

MIB = 1024 * 1024


def test_a_quarter_is_for_links_with_next_to_nothing() -> None:
    total = QueuedTotal(16 * MIB, bytes=12 * MIB)
    assert not total.admits(0, MIB)
    assert not total.admits(FREE_BYTES, 1)
    assert total.admits(100, FREE_BYTES - 100)
    total.bytes = 16 * MIB
    assert not total.admits(100, 100)
    assert total.admits(0, FREE_BYTES), "one that has nothing waits for nobody"


async def test_links_with_the_most_give_way(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    """Invariant 7: a dispatcher that sends without regard to 48 edges that read nothing fills no more than
    the connector's room; links with the most end as overloaded, and a bystander's goes on and gets all."""
    async with start_app(max_queued_bytes=32 * MIB) as app:
        peers = EdgePeers(authority, app.edge_port)
        silent = []
        for number in range(48):
            _, writer = await peers.upgraded(f"silent-{number}", limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            silent.append(writer)
        async with peers.link("quick", max_size=None) as quick:
            await dispatcher.until(lambda: len(dispatcher.epochs) == 49)
            links = {one.node_id: one.link for one in dispatcher.announcements}
            big = b'"' + b"x" * (900 * 1024) + b'"'
            for number in range(48):
                dispatcher.send_messages(links[f"silent-{number}"], _message("big", big))
                dispatcher.send_messages(links["quick"], _message("q"))
                await quick.recv()
                assert _queued(app) <= 32 * MIB + 49 * FREE_BYTES
            dispatcher.send_messages(links["quick"], _message("big", big))
            assert len(await quick.recv()) > len(big)
            await dispatcher.until(lambda: len(dispatcher.ended) >= 20)
            assert {end.reason for end in dispatcher.ended} == {link_pb2.CLOSE_REASON_OVERLOADED}
            assert links["quick"] not in {end.link for end in dispatcher.ended}
            evicted = app.metrics.registry.get_sample_value("cloudhub_connector_queue_evictions_total")
            assert evicted == len(dispatcher.ended)
            for writer in silent:
                writer.transport.abort()
            await eventually(lambda: _queued(app) == 0, 10, "links that are gone count for nothing")


def _queued(app: object) -> float:
    return float(app.metrics.registry.get_sample_value("cloudhub_connector_queued_bytes"))  # type: ignore[attr-defined]

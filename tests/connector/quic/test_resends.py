"""A message that is sent again while QUIC repeats its packets."""

import math

from cloudhub.v1.message_pb2 import Message
from services.connector.app import ConnectorApp
from tests.connector.conftest import metric
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.quic_peer import QuicPeers, keepalive


def _message(message_id: str) -> Message:
    return Message(id=message_id, resource="ns/configmap/c", operation="update", content=b'""')


async def test_a_message_that_quic_still_repeats_is_not_sent_again(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    async with quic_peers.link() as peer:
        await dispatcher.send_and_wait(_message("before"))
        assert (await peer.message()).header.id == "before"
        peer.hears = 0
        first = await dispatcher.send_and_wait(_message("lost"))
        await dispatcher.send_and_wait(_message("lost"), repeats=first)
        assert metric(app, "resends_withheld_total") == 1
        peer.hears = math.inf
        assert (await peer.message()).header.id == "lost"
        peer.say(keepalive("heard"))
        await dispatcher.until(lambda: dispatcher.upstream)
        await dispatcher.send_and_wait(_message("lost"), repeats=first)
        assert (await peer.message()).header.id == "lost"
        assert metric(app, "resends_withheld_total") == 1

"""A message that is sent again while QUIC repeats its packets."""

import math

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cloudhub.v1.message_pb2 import Message
from services.runtime.tracing import Tracing
from tests.connector.conftest import StartApp, metric
from tests.support.certs import TestAuthority
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.quic_peer import QuicPeers, keepalive


def _message(message_id: str) -> Message:
    return Message(
        id=message_id,
        resource="ns/configmap/c",
        operation="update",
        content=b'""',
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


async def test_a_message_that_quic_still_repeats_is_not_sent_again(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    """A trace tells by which of its attempts nothing went out."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider, "connector")
    async with start_app(tracing=tracing) as app, QuicPeers(authority, app.quic_port).link() as peer:
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
    sends = [span.attributes or {} for span in exporter.get_finished_spans() if span.name == "send"]
    assert [send.get("cloudhub.withheld", False) for send in sends] == [False, False, True, False]

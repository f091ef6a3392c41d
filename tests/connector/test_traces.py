"""Spans of links and messages."""

import json

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from cloudhub.v1 import message_pb2
from services.runtime.tracing import FAILED, Tracing, span_context
from tests.connector.conftest import StartApp, poll
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers
from tests.support.link_dispatcher import LinkDispatcher

_SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_UNSAMPLED = _SAMPLED[:-1] + "0"


async def test_a_sampled_messages_send_joins_its_trace_which_goes_to_the_edge(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with start_app(tracing=Tracing(provider, "connector")) as app:
        async with EdgePeers(authority, app.edge_port).link() as peer:
            messages = [
                message_pb2.Message(id="sampled", traceparent=_SAMPLED),
                message_pb2.Message(id="unsampled", traceparent=_UNSAMPLED),
                message_pb2.Message(id="none"),
                message_pb2.Message(id="bad", traceparent=_SAMPLED, content=b"{"),
            ]
            announcement = await dispatcher.announced()
            dispatcher.send_messages(1, *messages)
            headers = [json.loads(await peer.recv())["header"] for _ in range(3)]
            await dispatcher.until(lambda: dispatcher.written)
        await poll(lambda: len(app.links) == 0)
        spans = {span.name: span for span in exporter.get_finished_spans() if span.name != "send"}
        sends = [span for span in exporter.get_finished_spans() if span.name == "send"]
    connect = spans["connect"]
    assert connect.attributes
    assert connect.attributes["cloudhub.node.id"] == "edge-1"
    assert connect.attributes["cloudhub.outcome"] == "admitted"
    announced, link = span_context(announcement.traceparent), spans["link"]
    assert announced
    assert announced.span_id == link.context.span_id
    for span in (connect, spans["disconnect"]):
        assert span.parent
        assert span.parent.span_id == link.context.span_id
    assert spans["disconnect"].context.trace_id == connect.context.trace_id
    good, bad = sorted(sends, key=lambda span: span.status.status_code is StatusCode.ERROR)
    assert good.context.trace_id == int(_SAMPLED[3:35], 16)
    assert good.parent
    assert good.parent.span_id == int(_SAMPLED[36:52], 16)
    # The attempt's, which is above both `send` and what the edge makes of it.
    assert headers[0]["traceparent"] == _SAMPLED
    assert headers[1]["traceparent"] == _UNSAMPLED
    assert "traceparent" not in headers[2]
    assert bad.status.status_code is StatusCode.ERROR
    assert bad.attributes
    assert bad.attributes[FAILED] is True
    assert good.attributes
    assert FAILED not in good.attributes

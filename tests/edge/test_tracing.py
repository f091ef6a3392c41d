"""The edge's `apply` span."""

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from edge.protocol import Header, Message, Route
from edge.tracing import STEP_NS, EdgeTracing, configure_tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def message(traceparent: str) -> Message:
    return Message(
        Header("m-1", resourceversion="7", traceparent=traceparent),
        Route("edgecontroller", "resource", "update", "default/configmap/cm1"),
        msgspec.Raw(b"{}"),
    )


def test_the_span_is_a_child_of_the_hubs_and_goes_back_with_the_acknowledgement() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = EdgeTracing(provider)
    returned = tracing.apply("edge-1", message(PARENT), 1_795_468_263_601)
    (span,) = exporter.get_finished_spans()
    assert span.name == "apply"
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.context is not None
    assert returned == f"00-0af7651916cd43dd8448eb211c80319c-{span.context.span_id:016x}-01"
    # It came within that millisecond, and not before the hub sent it.
    assert span.start_time == 1_795_468_263_601_999_999
    assert span.end_time is not None
    assert span.end_time - span.start_time >= STEP_NS
    assert span.attributes is not None
    assert span.attributes["cloudhub.node.id"] == "edge-1"
    tracing.close()


@pytest.mark.parametrize(
    "rubbish", ["x" * 55, "01" + PARENT[2:], PARENT.replace("b7ad6b7169203331", "0" * 16)]
)
def test_a_context_that_makes_no_sense_is_handed_back_as_it_came(rubbish: str) -> None:
    tracing = EdgeTracing(TracerProvider())
    assert tracing.apply("edge-1", message(rubbish), 0) == rubbish
    tracing.close()


def test_without_configuration_the_context_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    tracing = configure_tracing("edge-1")
    assert tracing.apply("edge-1", message(PARENT), 0) == PARENT
    tracing.close()


def test_the_standard_variables_turn_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("edge.tracing.OTLPSpanExporter", InMemorySpanExporter)
    tracing = configure_tracing("edge-1")
    returned = tracing.apply("edge-1", message(PARENT), 0)
    assert returned != PARENT
    assert returned[:36] == PARENT[:36]
    tracing.close()

"""The edge's end of a message's trace: one `apply` span from receipt to durable.

Configured by the standard OTEL_* variables. Without them the hub's context is handed back as it
came, so that its acknowledgement joins the trace all the same.
"""

import os
import re
import threading
import time
from urllib.parse import unquote

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from edge.protocol import Message
from edge.settings import SettingsFault

# How long the end of a process may wait for a collector that does not answer.
FLUSH_SECONDS = 3.0
# Longer than the hub's span above it, or a viewer that mends skewed clocks would move it.
STEP_NS = 3_000

_HEADER = re.compile(r"[0-9A-Za-z_.-]+\s*=[ -~]*")


def _parent(traceparent: str) -> Context | None:
    version, _, rest = traceparent.partition("-")
    trace_id, _, rest = rest.partition("-")
    span_id, _, flags = rest.partition("-")
    try:
        context = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    except ValueError:
        return None
    if version != "00" or not context.is_valid:
        return None
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


class EdgeTracing:
    """Makes the spans of one process; without a provider it makes none."""

    def __init__(self, provider: TracerProvider | None = None, exporter: SpanExporter | None = None) -> None:
        self._provider = provider
        self._exporter = exporter
        self._tracer = provider.get_tracer("cloudhub.edge") if provider else None

    def apply(self, node_id: str, message: Message, start_ms: int) -> str:
        """Records that a sampled message, which came at `start_ms`, was applied just now; the `traceparent`
        for its acknowledgement."""
        received = message.header.traceparent
        if self._tracer is None or (parent := _parent(received)) is None:
            return received
        now_ns = time.time_ns()
        # Not before it came, or a clock would look skewed.
        start_ns = min(start_ms * 1_000_000 + 999_999, now_ns)
        span = self._tracer.start_span(
            "apply",
            parent,
            SpanKind.CONSUMER,
            {
                "cloudhub.node.id": node_id,
                "messaging.system": "cloudhub",
                "messaging.operation.name": "apply",
                "messaging.message.id": message.header.msg_id,
                "messaging.destination.name": message.route.resource,
                "cloudhub.operation": message.route.operation,
                "cloudhub.version": message.header.resourceversion,
            },
            start_time=start_ns,
        )
        span.end(max(now_ns, start_ns + STEP_NS))
        context = span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def close(self) -> None:
        """Flushes and ends the exporter; blocks for FLUSH_SECONDS at the most, then spans are lost."""
        if self._provider is None:
            return
        if self._exporter is None:
            self._provider.shutdown()
            return
        cut = threading.Timer(FLUSH_SECONDS, self._exporter.shutdown)
        cut.start()
        self._provider.shutdown()
        cut.cancel()
        cut.join()


def _check_exporter_variables() -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        if "@" in os.environ.get(name, ""):
            raise SettingsFault(f"{name}: should be an address without user and password")
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        for number, header in enumerate(filter(None, os.environ.get(name, "").split(",")), 1):
            if not _HEADER.fullmatch(unquote(header.strip())):
                raise SettingsFault(f"{name}: entry {number} should be NAME=VALUE, the value percent-encoded")


def configure_tracing(instance: str) -> EdgeTracing:
    """On when the OTEL_* variables name an OTLP endpoint or exporter. Raises SettingsFault for variables of
    which the exporter would repeat a secret in the logs."""
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or wanted == "none" or not (endpoint or wanted == "otlp"):
        return EdgeTracing()
    provider = TracerProvider(
        resource=Resource.create(
            {
                "service.name": "cloudhub-edge",
                "service.instance.id": instance,
                "service.namespace": "cloudhub",
                **OTELResourceDetector().detect().attributes,
            }
        )
    )
    _check_exporter_variables()
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return EdgeTracing(provider, exporter)

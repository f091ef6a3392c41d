"""W3C trace context as it travels: a `traceparent` string in rows, frames and headers.

A message whose trace is not sampled makes no span objects: callers ask `is_sampled` first. With
no exporter configured by the standard OTEL_* variables nothing is sampled here, and a
publisher's context is still carried along.
"""

import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, Tracer
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from services.runtime.errors import StartupError

# How long the end of a process may wait for a collector that does not answer.
FLUSH_SECONDS = 3.0

# A viewer that mends skewed clocks moves a span which does not lie within the one above it, unless it lasts
# longer (Jaeger's rule). So what has later steps below it is a moment, and each step lasts longer than the
# one above, by the finest that every store of traces keeps. None lasts nothing, which counts as negative.
ORIGIN_NS = 1_000
CAUSE_NS = 2_000
STEP_NS = 3_000
# Searches cannot ask for a span's status everywhere, but for an attribute.
FAILED = "cloudhub.failed"

_HEX = frozenset("0123456789abcdef")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
_HEADER_NAME = re.compile(r"[0-9A-Za-z_.-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")


def is_sampled(traceparent: str) -> bool:
    """True if the context is well formed (W3C Trace Context, version 00) and its sampled flag is set."""
    return len(traceparent) == 55 and traceparent[-1] in "13579bdf"


def span_context(traceparent: str) -> SpanContext | None:
    """The remote span that `traceparent` names; None if it is malformed or all zero."""
    parts = traceparent.split("-")
    if len(parts) != 4 or [len(part) for part in parts] != [2, 32, 16, 2]:
        return None
    if not _HEX.issuperset("".join(parts)) or parts[0] == "ff":
        return None
    context = SpanContext(int(parts[1], 16), int(parts[2], 16), True, TraceFlags(int(parts[3], 16)))
    return context if context.is_valid else None


def traceparent_of(span: Span) -> str:
    """The `traceparent` that names this span; empty if it has no valid context."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def trace_id_of(traceparent: str) -> str:
    """The 32 hex digits of the trace, or an empty string."""
    context = span_context(traceparent)
    return f"{context.trace_id:032x}" if context else ""


def is_same_trace(one: str, other: str) -> bool:
    """Whether two contexts, both of which are whole, are of one trace."""
    return one[3:35] == other[3:35]


def traceparent_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The caller's context from a call's metadata, or an empty string."""
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str) and span_context(value):
            return value
    return ""


def parent_context(traceparent: str) -> Context:
    """An OpenTelemetry context whose current span is the one named; empty if there is none."""
    context = span_context(traceparent)
    return trace.set_span_in_context(NonRecordingSpan(context), Context()) if context else Context()


def fail(span: Span, text: str) -> None:
    """The step went wrong: says so in the span's status, and for searches."""
    span.set_status(Status(StatusCode.ERROR, text))
    span.set_attribute(FAILED, value=True)


def start_within(at_ms: int) -> int:
    """Nanoseconds of a time that is known to the millisecond: not before it was, and not in the future."""
    return min(at_ms * 1_000_000 + 999_999, time.time_ns())


class Tracing:
    """The tracer of one process. Spans have explicit parents; there is no ambient current span."""

    def __init__(
        self, provider: TracerProvider | None, service: str, exporter: SpanExporter | None = None
    ) -> None:
        self._provider = provider
        self._exporter = exporter
        self._tracer: Tracer = provider.get_tracer(f"cloudhub.{service}") if provider else trace.NoOpTracer()

    @property
    def enabled(self) -> bool:
        """Whether spans of ours go anywhere."""
        return self._provider is not None

    def start(
        self,
        name: str,
        parent: str = "",
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: list[str] | None = None,
        start_ns: int | None = None,
    ) -> Span:
        """Starts a span under the `traceparent` given (a new trace if empty). The caller ends it."""
        found = [span_context(link) for link in links or ()]
        return self._tracer.start_span(
            name,
            parent_context(parent),
            kind,
            attributes,
            [Link(context) for context in found if context],
            start_ns,
        )

    def record(
        self,
        name: str,
        parent: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: list[str] | None = None,
        start_ns: int | None = None,
        lasts_ns: int = 0,
        error: str = "",
    ) -> str:
        """Records a span that ends now, or lasts as long as is said; gives back its `traceparent`."""
        now_ns = time.time_ns()
        begun_ns = now_ns if start_ns is None else start_ns
        span = self.start(name, parent, kind=kind, attributes=attributes, links=links, start_ns=begun_ns)
        if error:
            fail(span, error)
        span.end(begun_ns + lasts_ns if lasts_ns else max(now_ns, begun_ns + STEP_NS))
        return traceparent_of(span)

    def close(self) -> None:
        """Flushes and ends the exporter; blocks for FLUSH_SECONDS at the most, then spans are lost."""
        if self._provider is None:
            return
        if self._exporter is None:
            self._provider.shutdown()
            return
        # The provider alone would wait half a minute for a collector that is away.
        cut = threading.Timer(FLUSH_SECONDS, self._exporter.shutdown)
        cut.start()
        self._provider.shutdown()
        cut.cancel()
        cut.join()


def _check_exporter_variables() -> None:
    for name in _ENDPOINTS:
        if "@" in os.environ.get(name, ""):
            raise StartupError(
                f"{name} should be an address without user and password; what a collector wants to be shown "
                "goes into OTEL_EXPORTER_OTLP_HEADERS"
            )
    for name in _HEADERS:
        for number, header in enumerate(filter(None, os.environ.get(name, "").split(",")), 1):
            key, has_value, value = (unquote(part) for part in header.strip().partition("="))
            if not has_value or not _HEADER_NAME.fullmatch(key.strip()) or not _HEADER_VALUE.fullmatch(value):
                raise StartupError(
                    f"{name}: entry {number} should be NAME=VALUE, the value percent-encoded, in printable "
                    "ASCII; it is not shown, since it may be a secret"
                )


def configure_tracing(service: str, instance: str) -> Tracing:
    """Tracing by the standard OTEL_* variables: on when an OTLP endpoint or exporter is named. Raises
    StartupError for variables of which the exporter would repeat a secret in the logs."""
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or wanted == "none" or not (endpoint or wanted == "otlp"):
        return Tracing(None, service)
    resource = Resource.create(
        {
            "service.name": f"cloudhub-{service}",
            "service.instance.id": instance,
            "service.namespace": "cloudhub",
            **OTELResourceDetector().detect().attributes,
        }
    )
    _check_exporter_variables()
    provider, exporter = TracerProvider(resource=resource), OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider, service, exporter)

"""Where the spans of real processes go in tests: an OTLP/gRPC receiver."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

WAIT_SECONDS = 20.0
Value = str | int | float | bool | list[Any] | None


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One finished span of some process; ids in hex, as in a `traceparent`."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the root of a trace."""
    kind: str
    start_ns: int
    end_ns: int
    error: str | None
    """The status's text if the status is ERROR, else None."""
    service: str
    instance: str
    attributes: Mapping[str, Value] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    """(trace id, span id) of spans of other traces."""

    def is_named_by(self, traceparent: str) -> bool:
        """Whether a sampled context names this span."""
        named = traceparent[:-2] == f"00-{self.trace_id}-{self.span_id}-"
        return named and int(traceparent[-2:], 16) % 2 == 1


def _value(value: AnyValue) -> Value:
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_value(item) for item in value.array_value.values]
    found: Value = getattr(value, which) if which else None
    return found


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _span(span: WireSpan, resource: Mapping[str, Value]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        error=span.status.message if span.status.code == Status.STATUS_CODE_ERROR else None,
        service=str(resource.get("service.name", "")),
        instance=str(resource.get("service.instance.id", "")),
        attributes=_attributes(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
    )


class OtlpReceiver(pb_grpc.TraceServiceServicer):
    """Collects the spans of all processes that export to `endpoint`; an async context."""

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.exports = 0
        self.endpoint = ""
        self._server: grpc.aio.Server | None = None
        self._arrived = asyncio.Condition()

    async def __aenter__(self) -> "OtlpReceiver":
        self._server = grpc.aio.server()
        pb_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        await self._server.stop(None)

    def environment(self) -> dict[str, str]:
        """What makes a process export here, soon after a span has ended."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    async def Export(  # type: ignore[override,unused-ignore]  # the coroutine form
        self, request: pb.ExportTraceServiceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ExportTraceServiceResponse:
        """TraceService of OTLP."""
        async with self._arrived:
            self.exports += 1
            for of_resource in request.resource_spans:
                resource = _attributes(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    self.spans.extend(_span(span, resource) for span in of_scope.spans)
            self._arrived.notify_all()
        return pb.ExportTraceServiceResponse()

    def found(self, name: str = "", trace_id: str = "", **attributes: Value) -> list[ReceivedSpan]:
        """The spans so far, in order of their start; attribute names have `__` for each dot."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return sorted(
            (
                span
                for span in self.spans
                if (not name or span.name == name)
                and (not trace_id or span.trace_id == trace_id)
                and all(span.attributes.get(key) == value for key, value in wanted.items())
            ),
            key=lambda span: span.start_ns,
        )

    async def wait_for(
        self, name: str, trace_id: str = "", count: int = 1, **attributes: Value
    ) -> list[ReceivedSpan]:
        """Waits for at least `count` such spans; the failure names what did come."""
        try:
            async with asyncio.timeout(WAIT_SECONDS), self._arrived:
                await self._arrived.wait_for(lambda: len(self.found(name, trace_id, **attributes)) >= count)
        except TimeoutError:
            names = [span.name for span in self.found(trace_id=trace_id)]
            raise AssertionError(
                f"no {count} spans {name!r} with {attributes} within {WAIT_SECONDS:g} s; "
                f"of trace {trace_id or '(any)'} there are {names}"
            ) from None
        return self.found(name, trace_id, **attributes)

    async def one(self, name: str, trace_id: str = "", **attributes: Value) -> ReceivedSpan:
        """The only such span, when it has come."""
        spans = await self.wait_for(name, trace_id, 1, **attributes)
        assert len(spans) == 1, f"{len(spans)} spans {name!r}: {spans}"
        return spans[0]

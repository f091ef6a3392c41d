"""A Jaeger of its own for tests: the real one, with its storage in memory."""

import asyncio
import json
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import HOST, free_ports
from tests.support.tools import answers, ask, fetch, program, running

WAIT_SECONDS = 30.0
# The attribute by which it gives them back, beside those of the span.
WARNINGS = "@jaeger@warnings"
# As much as any two steps can lie apart.
LONGEST_SKEW = "8760h"
Value = str | int | float | bool | list[Any] | None


@dataclass(frozen=True, slots=True)
class JaegerSpan:
    """A span as Jaeger gives it back."""

    name: str
    service: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    error: str | None
    attributes: Mapping[str, Value]
    links: tuple[str, ...]
    """The traces that it refers to."""
    warnings: tuple[str, ...] = ()
    """What Jaeger has to say against it."""


def _value(value: Mapping[str, Any]) -> Value:
    (kind, found), *_ = value.items()
    if kind == "intValue":
        return int(found)
    if kind == "arrayValue":
        return [_value(one) for one in found.get("values", ())]
    plain: Value = found
    return plain


def _attributes(pairs: list[dict[str, Any]]) -> dict[str, Value]:
    return {pair["key"]: _value(pair["value"]) for pair in pairs}


def _warnings(span: Mapping[str, Any]) -> tuple[str, ...]:
    told = _attributes(span.get("attributes", [])).get(WARNINGS)
    return tuple(map(str, told)) if isinstance(told, list) else ()


def spans_of(answer: Mapping[str, Any]) -> list[JaegerSpan]:
    """The spans of an answer of /api/v3 (OTLP as JSON), by their start."""
    found = [
        JaegerSpan(
            name=span["name"],
            service=str(_attributes(resource["resource"]["attributes"])["service.name"]),
            span_id=span["spanId"],
            parent_id=span.get("parentSpanId", ""),
            start_ns=int(span["startTimeUnixNano"]),
            end_ns=int(span["endTimeUnixNano"]),
            error=span["status"].get("message", "") if span.get("status", {}).get("code") == 2 else None,
            attributes=_attributes(span.get("attributes", [])),
            links=tuple(link["traceId"] for link in span.get("links", ())),
            warnings=_warnings(span),
        )
        for resource in answer["result"]["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    return sorted(found, key=lambda span: span.start_ns)


class Jaeger:
    """A running Jaeger: where it takes spans, and what it answers."""

    def __init__(self, otlp_port: int, otlp_http_port: int, query_port: int, adjusting_port: int) -> None:
        self.endpoint = f"http://{HOST}:{otlp_port}"
        self.otlp_url = f"http://{HOST}:{otlp_http_port}/v1/traces"
        self.url = f"http://{HOST}:{query_port}"
        self.adjusting_url = f"http://{HOST}:{adjusting_port}"
        """The same traces, with the adjustment of skewed clocks switched on."""

    def environment(self) -> dict[str, str]:
        """What makes a process export here, soon after a span has ended."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    async def raw_trace(self, trace_id: str, *, adjusting: bool = False) -> dict[str, Any]:
        """A trace as /api/v3 gives it; without spans if there is none."""
        url = f"{self.adjusting_url if adjusting else self.url}/api/v3/traces/{trace_id}"
        status, body = await asyncio.to_thread(fetch, url)
        if status == 404:
            return {"result": {"resourceSpans": []}}
        assert status == 200, f"{url}: {status} {body.decode(errors='replace')[:500]}"
        found: dict[str, Any] = json.loads(body)
        return found

    async def trace(
        self, trace_id: str, until: Callable[[list[JaegerSpan]], bool] = lambda spans: bool(spans)
    ) -> list[JaegerSpan]:
        """The spans of a trace, once they meet the condition."""
        spans: list[JaegerSpan] = []
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                # What has arrived can only be asked for.
                while not until(spans := spans_of(await self.raw_trace(trace_id))):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"trace {trace_id}: {[span.name for span in spans]}") from None
        return spans

    async def take(self, spans: Mapping[str, Any]) -> None:
        """Spans as /api/v3 gives them, as if a process had exported them."""
        body = json.dumps({"resourceSpans": spans["result"]["resourceSpans"]}).encode()
        status, answer = await asyncio.to_thread(fetch, self.otlp_url, body)
        assert status == 200, answer

    async def search(self, service: str, **tags: str) -> set[str]:
        """Traces that have a span of this service with all these tags, as the search of its pages finds them;
        tag names have `__` for each dot."""
        wanted = {key.replace("__", "."): value for key, value in tags.items()}
        query = urllib.parse.urlencode(
            {"service": service, "tags": json.dumps(wanted), "lookback": "1h", "limit": 100}
        )
        answer = await ask(f"{self.url}/api/traces?{query}")
        return {trace["traceID"] for trace in answer["data"]}


@asynccontextmanager
async def running_jaeger(folder: Path) -> AsyncIterator[Jaeger]:
    """Jaeger with OTLP in and its query API out, on ports of its own."""
    binary = program("jaeger", "jaeger")
    otlp, otlp_http, query, query_grpc, adjusting, adjusting_grpc, health, telemetry = free_ports(8)
    config = {
        "service": {
            "extensions": [
                "jaeger_storage",
                "jaeger_query",
                "jaeger_query/adjusting",
                "healthcheckv2",
            ],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {
                "metrics": {
                    "readers": [{"pull": {"exporter": {"prometheus": {"host": HOST, "port": telemetry}}}}]
                }
            },
        },
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10000}}}},
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": f"{HOST}:{query}"},
                "grpc": {"endpoint": f"{HOST}:{query_grpc}"},
            },
            "jaeger_query/adjusting": {
                "storage": {"traces": "memory"},
                "max_clock_skew_adjust": LONGEST_SKEW,
                "http": {"endpoint": f"{HOST}:{adjusting}"},
                "grpc": {"endpoint": f"{HOST}:{adjusting_grpc}"},
            },
            "healthcheckv2": {"use_v2": True, "http": {"endpoint": f"{HOST}:{health}"}},
        },
        "receivers": {
            "otlp": {
                "protocols": {
                    "grpc": {"endpoint": f"{HOST}:{otlp}"},
                    "http": {"endpoint": f"{HOST}:{otlp_http}"},
                }
            }
        },
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }
    file = folder / "jaeger.yaml"
    file.write_text(yaml.safe_dump(config))
    ready = answers(f"http://{HOST}:{health}/status")
    # It would trace itself, and wait for its own end to take those spans.
    quiet = {"OTEL_TRACES_SAMPLER": "always_off"}
    async with running([binary, "--config", file], folder / "jaeger.log", ready, environment=quiet):
        yield Jaeger(otlp, otlp_http, query, adjusting)

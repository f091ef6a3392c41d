"""One message through everything that can happen to it, as the real Jaeger shows it. `make check-tracing`."""

import json
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.runtime.rpc import open_channel
from tests.observability.jaeger import Jaeger, JaegerSpan, running_jaeger, spans_of
from tests.tracing.cloud import CloudProgram, new_context, receive, trace_of
from tests.tracing.hub import HubProcesses

pytestmark = [pytest.mark.observability, pytest.mark.asyncio(loop_scope="module")]

NODE = "edge-7"
ACK_SECONDS = 1.5
DISPATCHER, CONNECTOR, EDGE = "cloudhub-dispatcher", "cloudhub-connector", "cloudhub-edge"
PUBLISHER = "shop"
DAYS_NS = 3 * 24 * 3600 * 10**9


def named(spans: list[JaegerSpan], name: str) -> list[JaegerSpan]:
    return [span for span in spans if span.name == name]


@dataclass(frozen=True)
class Journey:
    """What was published, and the trace of it."""

    jaeger: Jaeger
    message_id: str
    publisher: str
    """The publisher's own `traceparent`."""
    spans: list[JaegerSpan]

    @property
    def trace_id(self) -> str:
        return trace_of(self.publisher)


def publishers_span(context: str, start_ns: int, end_ns: int) -> dict[str, Any]:
    """As a publisher that traces itself exports it, as JSON."""
    _, trace_id, span_id, _ = context.split("-")
    name = {"key": "service.name", "value": {"stringValue": PUBLISHER}}
    span = {
        "name": "set price",
        "traceId": trace_id,
        "spanId": span_id,
        "kind": 3,
        "startTimeUnixNano": str(start_ns),
        "endTimeUnixNano": str(end_ns),
        "status": {},
    }
    resource = {"resource": {"attributes": [name]}, "scopeSpans": [{"scope": {}, "spans": [span]}]}
    return {"result": {"resourceSpans": [resource]}}


async def travel(hub: HubProcesses, cloud: CloudProgram, jaeger: Jaeger, context: str) -> str:
    """Lost with its link, met with silence, cut off from its dispatcher, lost again, applied; its id."""
    trace_id = trace_of(context)
    await cloud.publish(NODE, name="prices", version="v41")
    async with hub.peers.link(NODE) as peer:
        start_ns = time.time_ns()
        response = await cloud.publish(NODE, context=context, name="prices", version="41")
        await jaeger.take(publishers_span(context, start_ns, time.time_ns()))
        await receive(peer)
        peer.transport.abort()
        await jaeger.trace(trace_id, lambda spans: len(named(spans, "lost")) == 1)
    async with hub.peers.link(NODE) as peer:
        for _ in range(2):
            message = await receive(peer)
            assert message["header"]["msg_id"] == response.message_id
        # What a killed process has not exported yet is lost.
        await jaeger.trace(
            trace_id, lambda spans: len(named(spans, "send")) == len(named(spans, "deliver")) == 3
        )
        await hub.restart("dispatcher", signal.SIGKILL)
        await receive(peer)
        await jaeger.trace(trace_id, lambda spans: len(named(spans, "send")) == 4)
    await jaeger.trace(trace_id, lambda spans: len(named(spans, "lost")) == 2)
    await hub.start_edge(NODE)
    return response.message_id


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def journey(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Journey]:
    """The trace is also left for `scripts/draw_trace.py` in the file that CLOUDHUB_TRACE_FILE names."""
    folder = tmp_path_factory.mktemp("jaeger")
    async with running_jaeger(folder) as jaeger:
        environment = {
            **jaeger.environment(),
            # No interval is over while a busy machine's dispatcher starts.
            "CLOUDHUB_DISPATCHER_ACK_SECONDS": str(ACK_SECONDS),
            "CLOUDHUB_DISPATCHER_ACK_FACTOR": "10",
        }
        async with (
            HubProcesses(folder, environment) as hub,
            open_channel(hub.address("sessions")) as sessions,
        ):
            context = new_context()
            async with open_channel(hub.address("dispatcher")) as dispatcher:
                cloud = CloudProgram(dispatcher, sessions)
                message_id = await travel(hub, cloud, jaeger, context)
            spans = await jaeger.trace(
                trace_of(context), lambda spans: bool(named(spans, "record") and named(spans, "apply"))
            )
            if kept := os.environ.get("CLOUDHUB_TRACE_FILE"):
                Path(kept).write_text(json.dumps(await jaeger.raw_trace(trace_of(context))))
            yield Journey(jaeger, message_id, context, spans)


async def test_one_trace_runs_from_the_publisher_to_the_device(journey: Journey) -> None:
    """C12, C20: every step is there, each below the one that caused it."""
    spans = journey.spans
    by_id = {span.span_id: span for span in spans}
    (root,) = [span for span in spans if span.parent_id not in by_id]
    assert (root.name, root.span_id) == ("set price", journey.publisher.split("-")[2])
    below = {(span.name, by_id[span.parent_id].name) for span in spans if span is not root}
    assert below == {
        ("publish", "set price"),
        ("outbox write", "publish"),
        ("deliver", "publish"),
        ("send", "deliver"),
        ("lost", "deliver"),
        ("apply", "deliver"),
        ("ack", "deliver"),
        ("record", "deliver"),
    }
    services = {"send": CONNECTOR, "apply": EDGE, "set price": PUBLISHER}
    assert [span for span in spans if span.service != services.get(span.name, DISPATCHER)] == []
    for span in spans:
        if span is root:
            continue
        assert span.attributes["messaging.message.id"] == journey.message_id
        assert span.attributes["cloudhub.node.id"] == NODE


def times(spans: list[JaegerSpan]) -> dict[str, tuple[int, int]]:
    return {span.span_id: (span.start_ns, span.end_ns) for span in spans}


async def assert_it_takes_no_clock_for_skewed(
    jaeger: Jaeger, trace_id: str, exported: list[JaegerSpan]
) -> None:
    """Jaeger gives back all times as they were, and no warning, whether it may adjust them or not."""
    for adjusting in (False, True):
        spans = spans_of(await jaeger.raw_trace(trace_id, adjusting=adjusting))
        # What a killed process had not exported is missing, which is no fault of a clock.
        skewed = [
            (span.name, told) for span in spans for told in span.warnings if "is not in the trace" not in told
        ]
        assert skewed == []
        told = times(spans)
        assert {span.span_id: told.get(span.span_id) for span in exported} == times(exported)


async def test_no_clock_looks_skewed(journey: Journey) -> None:
    """C20: a step after another's end is not taken for the work of a wrong clock."""
    await assert_it_takes_no_clock_for_skewed(journey.jaeger, journey.trace_id, journey.spans)


async def test_no_clock_looks_skewed_in_the_traces_of_links(journey: Journey) -> None:
    jaeger = journey.jaeger
    *ended, lasting = dict.fromkeys(span.links[0] for span in named(journey.spans, "deliver"))
    for trace_id in ended:
        await jaeger.trace(trace_id, lambda spans: bool(named(spans, "disconnect")))
    await jaeger.trace(lasting, lambda spans: bool(named(spans, "admit")))
    for trace_id in (*ended, lasting):
        spans = spans_of(await jaeger.raw_trace(trace_id))
        await assert_it_takes_no_clock_for_skewed(jaeger, trace_id, spans)


async def test_no_clock_looks_skewed_when_a_message_is_delivered_after_days(journey: Journey) -> None:
    """C12: as if the node had been away from the first attempt's loss on."""
    raw = await journey.jaeger.raw_trace(journey.trace_id)
    first = named(journey.spans, "lost")[0].start_ns
    later = new_context()
    for resource in raw["result"]["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                span["traceId"] = trace_of(later)
                for attribute in span.get("attributes", ()):
                    if attribute["key"] == "messaging.message.id":
                        attribute["value"] = {"stringValue": "of another message"}
                if int(span["startTimeUnixNano"]) > first:
                    for at in ("startTimeUnixNano", "endTimeUnixNano"):
                        span[at] = str(int(span[at]) + DAYS_NS)
    exported = spans_of(raw)
    assert exported[-1].start_ns - exported[0].start_ns > DAYS_NS
    await journey.jaeger.take(raw)
    await journey.jaeger.trace(trace_of(later), lambda spans: len(spans) == len(exported))
    await assert_it_takes_no_clock_for_skewed(journey.jaeger, trace_of(later), exported)


async def test_the_check_sees_a_step_that_looks_skewed(journey: Journey) -> None:
    """What is asserted above can fail: a step that begins after the one above it has ended is moved."""
    context, start_ns = new_context(), time.time_ns()
    span = publishers_span(context, start_ns, start_ns + 2_000_000)
    (of_parent,) = span["result"]["resourceSpans"][0]["scopeSpans"][0]["spans"]
    child = {
        **of_parent,
        "spanId": "1" * 16,
        "parentSpanId": of_parent["spanId"],
        "startTimeUnixNano": str(start_ns + DAYS_NS),
        "endTimeUnixNano": str(start_ns + DAYS_NS + 1_000_000),
    }
    span["result"]["resourceSpans"][0]["scopeSpans"][0]["spans"].append(child)
    exported = spans_of(span)
    await journey.jaeger.take(span)
    spans = await journey.jaeger.trace(trace_of(context), lambda spans: len(spans) == 2)
    # More than one, since its memory keeps what an answer adds.
    assert [bool(span.warnings) for span in spans] == [False, True]
    assert times(spans) == times(exported)
    adjusted = spans_of(await journey.jaeger.raw_trace(trace_of(context), adjusting=True))
    assert times(adjusted) != times(exported)


async def test_every_attempt_says_why_it_was_made_and_what_became_of_it(journey: Journey) -> None:
    """C20, C35."""
    delivers = named(journey.spans, "deliver")
    told = [(span.attributes["cloudhub.reason"], span.attributes["cloudhub.attempt"]) for span in delivers]
    assert told == [
        ("accepted", 1),
        ("session_opened", 1),
        ("unacknowledged", 2),
        ("link_moved", 1),
        ("session_opened", 1),
    ]
    epochs = [int(str(span.attributes["cloudhub.session.epoch"])) for span in delivers]
    assert epochs[0] < epochs[1] == epochs[2] < epochs[3] < epochs[4]
    sends = named(journey.spans, "send")
    assert [span.parent_id for span in sends] == [span.span_id for span in delivers]
    lost = [(span.parent_id, span.attributes["cloudhub.reason"]) for span in named(journey.spans, "lost")]
    assert lost == [(delivers[0].span_id, "transport_error"), (delivers[3].span_id, "edge_closed")]
    (ack,) = named(journey.spans, "ack")
    assert ack.attributes["cloudhub.session.epoch"] == epochs[4]


async def test_an_attempt_leads_to_the_trace_of_its_link(journey: Journey) -> None:
    delivers = named(journey.spans, "deliver")
    # The dispatcher that was killed and the next one had the same link.
    assert [len({*span.links}) for span in delivers] == [1, 1, 1, 1, 1]
    links = [span.links[0] for span in delivers]
    assert (links[1], links[1]) == (links[2], links[3])
    assert len({*links}) == 3
    spans = await journey.jaeger.trace(links[0], lambda spans: len(named(spans, "disconnect")) == 2)
    assert {span.name for span in spans} == {"link", "connect", "admit", "disconnect"}
    assert {span.attributes["cloudhub.node.id"] for span in spans} == {NODE}
    assert {span.attributes["cloudhub.reason"] for span in named(spans, "disconnect")} == {"transport_error"}


@pytest.mark.parametrize(
    ("service", "tags"),
    [
        (DISPATCHER, {"cloudhub__node__id": NODE}),
        (CONNECTOR, {"cloudhub__node__id": NODE}),
        (EDGE, {"cloudhub__node__id": NODE}),
        (DISPATCHER, {"cloudhub__reason": "unacknowledged"}),
        (DISPATCHER, {"cloudhub__reason": "link_moved"}),
        (DISPATCHER, {"cloudhub__reason": "transport_error", "messaging__system": "cloudhub"}),
        (DISPATCHER, {"cloudhub__reason": "edge_closed", "cloudhub__node__id": NODE}),
        (DISPATCHER, {"cloudhub__object__key": "uid-prices"}),
        (DISPATCHER, {"cloudhub__failed": "true", "cloudhub__node__id": NODE}),
    ],
)
async def test_a_search_finds_it(journey: Journey, service: str, tags: dict[str, str]) -> None:
    assert journey.trace_id in await journey.jaeger.search(service, **tags)


async def test_a_search_by_message_finds_it_alone(journey: Journey) -> None:
    for service in (DISPATCHER, CONNECTOR, EDGE):
        found = await journey.jaeger.search(service, messaging__message__id=journey.message_id)
        assert found == {journey.trace_id}
    for tags in ({"messaging__message__id": "another"}, {"cloudhub__reason": "no such reason"}):
        assert await journey.jaeger.search(DISPATCHER, **tags) == set()


@pytest.mark.parametrize("tags", [{"error": "true"}, {"span__kind": "producer"}])
async def test_a_search_for_what_it_does_not_hold_finds_nothing(
    journey: Journey, tags: dict[str, str]
) -> None:
    """Which is why docs/tracing.md names other tags."""
    assert await journey.jaeger.search(DISPATCHER, **tags) == set()


async def test_a_search_finds_publishes_that_were_turned_down(journey: Journey) -> None:
    (found,) = await journey.jaeger.search(DISPATCHER, cloudhub__reason="VERSION_MALFORMED")
    assert found != journey.trace_id
    (publish,) = await journey.jaeger.trace(found)
    assert (publish.name, publish.error) == ("publish", "VERSION_MALFORMED")

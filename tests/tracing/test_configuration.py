"""What the standard OTEL_* variables do to a process, and what it costs when they say nothing."""

import socket
import threading
import time
from collections.abc import Callable

import pytest

import edge.tracing
import services.runtime.tracing
from edge.tracing import EdgeTracing
from services.runtime.tracing import Tracing, is_sampled, traceparent_of
from tests.support.otlp import OtlpReceiver

NOWHERE = "http://127.0.0.1:9"
Configure = Callable[[], Tracing | EdgeTracing]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"),
        *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES"),
    ):
        monkeypatch.delenv(name, raising=False)


def of_a_service() -> Tracing:
    return services.runtime.tracing.configure_tracing("dispatcher", "d-1")


def of_an_edge() -> EdgeTracing:
    return edge.tracing.configure_tracing("edge-1")


both = pytest.mark.parametrize("configure", [of_a_service, of_an_edge])


@both
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["nothing set", "disabled", "no exporter"],
)
def test_without_an_exporter_there_is_no_thread(
    configure: Configure, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = threading.enumerate()
    tracing = configure()
    assert threading.enumerate() == before
    if isinstance(tracing, Tracing):
        assert not tracing.enabled
        span = tracing.start("publish")
        assert not span.is_recording()
        assert traceparent_of(span) == ""
    tracing.close()


@both
def test_an_endpoint_starts_one_thread_that_ends_with_the_process(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", NOWHERE)
    before = set(threading.enumerate())
    tracing = configure()
    started = set(threading.enumerate()) - before
    assert len(started) == 1
    tracing.close()
    assert not started & set(threading.enumerate())


async def test_an_operator_may_name_service_and_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    async with OtlpReceiver() as receiver:
        for name, value in receiver.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "berlin-hub")
        monkeypatch.setenv(
            "OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=rack-7,deployment.environment=prod"
        )
        tracing = of_a_service()
        tracing.record("connect", "")
        span = await receiver.one("connect")
        tracing.close()
    assert (span.service, span.instance) == ("berlin-hub", "rack-7")


async def test_a_sampler_of_the_operator_decides_over_traces_that_begin_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with OtlpReceiver() as receiver:
        for name, value in receiver.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        tracing = of_a_service()
        ours = tracing.record("publish", "")
        theirs = tracing.record("publish", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        span = await receiver.one("publish")
        tracing.close()
    assert ours
    assert not is_sampled(ours)
    assert span.is_named_by(theirs)


@both
def test_a_collector_that_never_answers_delays_the_end_of_a_process_for_a_moment_only(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.runtime.tracing, "FLUSH_SECONDS", 0.2)
    monkeypatch.setattr(edge.tracing, "FLUSH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{black_hole.getsockname()[1]}")
        tracing = configure()
        if isinstance(tracing, Tracing):
            tracing.record("publish", "")
        else:
            tracing._tracer.start_span("apply").end()  # type: ignore[union-attr]
        began = time.monotonic()
        tracing.close()
        assert time.monotonic() - began < 3.0

"""The port that Prometheus scrapes, and strangers at it."""

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily

from services.runtime import metrics
from services.runtime.errors import StartupError
from services.runtime.metrics import MAX_CONNECTIONS, MetricsEndpoint
from tests.support.figures import Figures
from tests.support.strangers import reset_at_once, shown, times

GET = b"GET /metrics HTTP/1.1\r\nHost: hub\r\n%s\r\n"


class Scraped:
    """An endpoint with one gauge."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.cut = Counter("cut", "cut", ["port", "reason"], registry=self.registry)
        Gauge("fleet", "of nodes", registry=self.registry).set(7)
        self.endpoint: Any = None

    def cuts(self, reason: str) -> float:
        return self.registry.get_sample_value("cut_total", {"port": "metrics", "reason": reason}) or 0.0

    async def ask(self, request: bytes, source: str = "127.0.0.1") -> bytes:
        reader, writer = await self.connect(source)
        writer.write(request)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return answer

    async def connect(self, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.endpoint.port, local_addr=(source, 0))


@asynccontextmanager
async def scraped() -> AsyncIterator[Scraped]:
    made = Scraped()
    made.endpoint = await MetricsEndpoint.serving("127.0.0.1:0", made.registry, made.cut)
    try:
        yield made
    finally:
        await made.endpoint.close()


async def test_what_scrapers_ask_for_is_what_they_get() -> None:
    async with scraped() as one:
        plain = await one.ask(GET % b"")
        assert plain.startswith(b"HTTP/1.1 200 ")
        assert b"\nfleet 7.0\n" in plain
        openmetrics = await one.ask(GET % b"Accept: application/openmetrics-text; version=1.0.0\r\n")
        assert b"application/openmetrics-text" in openmetrics
        assert openmetrics.endswith(b"# EOF\n")
        packed = await one.ask(GET % b"Accept-Encoding: gzip\r\n")
        head, _, body = packed.partition(b"\r\n\r\n")
        assert b"Content-Encoding: gzip" in head
        assert b"fleet 7.0" in gzip.decompress(body)
        some = await one.ask(b"GET /metrics?name[]=fleet HTTP/1.1\r\nHost: hub\r\n\r\n")
        assert b"fleet 7.0" in some
        assert b"cut_total" not in some


async def test_other_requests_are_answered_with_what_is_wrong() -> None:
    async with scraped() as one:
        assert (await one.ask(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        post = await one.ask(b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
        assert post.startswith(b"HTTP/1.1 405 ")
        assert (await one.ask(b"\x16\x03\x01 no HTTP\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        endless = b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000
        assert (await one.ask(endless)).startswith(b"HTTP/1.1 431 ")


async def test_silent_connections_of_one_network_keep_no_scraper_out(figures: Figures) -> None:
    """C47: as many as there may be, and as many again; the scraper is served as fast as without them."""
    async with scraped() as one:

        async def scrape(_: int) -> None:
            assert b"fleet 7.0" in await one.ask(GET % b"", "127.0.0.3")

        idle = await times(100, scrape)
        silent = [await one.connect("127.0.0.2") for _ in range(2 * MAX_CONNECTIONS)]
        beside = await times(100, scrape)
        figures(shown("scrape metrics, 64 silent connections", idle, beside))
        assert beside[-2] < 2 * idle[-2] + 0.5
        assert one.cuts("crowded_out") >= MAX_CONNECTIONS
        for _, writer in silent:
            writer.close()


async def test_a_silent_connection_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SECONDS", 0.2)
    async with scraped() as one:
        reader, writer = await one.connect("127.0.0.1")
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionError):
                assert await reader.read() == b""
                raise ConnectionResetError
        assert one.cuts("timeout") == 1
        writer.close()


class _Slow:
    """Collecting waits until it may go on, and notes how many collect at a time."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = threading.Event()
        self.at_once = 0
        self.most = 0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.begun.set()
        self.go_on.wait(10)
        self.at_once -= 1
        yield GaugeMetricFamily("slow", "slow", value=1)


async def test_collecting_holds_up_neither_the_loop_nor_itself() -> None:
    """The thread that collects does not keep links waiting, and two scrapes do not collect at once."""
    async with scraped() as one:
        slow = _Slow()
        one.registry.register(slow)
        slow.begun.clear()
        with mock.patch.object(slow, "go_on", threading.Event()):
            scrapes = [asyncio.create_task(one.ask(GET % b"")) for _ in range(3)]
            await asyncio.to_thread(slow.begun.wait, 10)
            await asyncio.sleep(0)  # the loop runs meanwhile
            assert not any(task.done() for task in scrapes)
            slow.go_on.set()
            for answer in await asyncio.gather(*scrapes):
                assert b"slow 1.0" in answer
        assert slow.most == 1


async def test_an_address_that_is_taken_is_named() -> None:
    async with scraped() as one:
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{one.endpoint.port} for metrics"):
            await MetricsEndpoint.serving(f"127.0.0.1:{one.endpoint.port}", one.registry)


async def test_connections_that_are_reset_before_they_are_accepted_leave_no_trace() -> None:
    """C47: what any stranger can do as often as he likes writes no traceback."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    async with scraped() as one:
        reset_at_once(one.endpoint.port, 20)
        assert (await one.ask(GET % b"")).startswith(b"HTTP/1.1 200 ")
        assert not faults

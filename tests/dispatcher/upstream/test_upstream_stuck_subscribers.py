"""Subscribers that acknowledge nothing, over real streams."""

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.settings import UpstreamSettings
from services.runtime.clock import Clock
from tests.support.upstream import PATIENCE_SECONDS, Subscriber, open_hub, report

QUICK = UpstreamSettings(subscriber_ack_seconds=0.5)


async def ended_with(subscriber: Subscriber) -> tuple[grpc.StatusCode, str]:
    """Reads a stream to its end: the status that it ends with."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            while await subscriber.call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), str(error.details())
    raise AssertionError("the stream ended without an error")


class LaterClock(Clock):
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


async def test_one_that_acknowledges_nothing_loses_what_it_holds_and_is_told(tmp_path: Path) -> None:
    """C49: of 160 messages it keeps its share for the time allowed; then the good one gets them, in order."""
    async with (
        open_hub(tmp_path, settings=QUICK) as hub,
        hub.subscriber("edgecontroller") as bad,
        hub.subscriber("edgecontroller") as good,
    ):
        for number in range(10):
            for node in range(16):
                hub.receive(f"node-{node}", 1, report("p", str(number), operation="insert"))
        taken = await good.take(160)
        code, details = await ended_with(bad)
        assert code is grpc.StatusCode.ABORTED
        assert "80 deliveries were held for" in details
        assert "subscribe again" in details
        for node in range(16):
            texts = [one.message.content for one in taken if one.node_id == f"node-{node}"]
            assert texts == [f'"{number}"'.encode() for number in range(10)]
        assert sum(one.redelivered for one in taken) == 80
        assert hub.metric("subscribers_ended_total", reason="no_acknowledgement") == 1
        assert hub.metric("subscribers") == 1


async def test_one_that_acknowledges_nothing_delays_nobody_elses_messages(tmp_path: Path) -> None:
    """C49: nodes that the good one has are served at once while the bad one holds all it may."""
    async with (
        open_hub(tmp_path) as hub,
        hub.subscriber("edgecontroller", credit=16),
        hub.subscriber("edgecontroller") as good,
    ):
        for number in range(40):
            hub.receive(f"first-{number}", 1, report("p", str(number), operation="insert"))
        await good.take(24)
        seconds = []
        for number in range(200):
            began = time.monotonic()
            hub.receive(f"later-{number}", 1, report("p", "x", operation="insert"))
            (one,) = await good.take(1)
            seconds.append(time.monotonic() - began)
            assert one.node_id == f"later-{number}"
        assert sorted(seconds)[198] < 0.5, "p99 of the good one; some milliseconds where nothing else runs"


async def test_one_that_is_alone_stays_until_somebody_else_comes(tmp_path: Path) -> None:
    """C49: a slow consumer is not thrown out for nothing; a better one gets what it holds."""
    clock, settings = LaterClock(), UpstreamSettings(subscriber_ack_seconds=10.0)
    async with (
        open_hub(tmp_path, clock=clock, settings=settings) as hub,
        hub.subscriber("edgecontroller") as slow,
        hub.subscriber("devicecontroller") as stuck,
        hub.subscriber("devicecontroller"),
    ):
        twin = Message(id="1", source="twin", group="resource", operation="insert", resource="x/y/z")
        hub.receive("a", 1, report("p", "1", operation="insert"))
        hub.receive("a", 1, twin)
        await slow.next()
        await stuck.next()
        clock.ahead_seconds = 1000.0
        assert hub.metric("oldest_unacknowledged_seconds") >= 1000.0
        assert (await ended_with(stuck))[0] is grpc.StatusCode.ABORTED, "they were looked at"
        hub.receive("b", 1, report("p", "2", operation="insert"))
        assert [one.node_id for one in await slow.next()] == ["b"], "it goes on"
        async with hub.subscriber("edgecontroller") as other:
            taken = await other.take(2)
            assert sorted((one.node_id, one.redelivered) for one in taken) == [("a", True), ("b", True)]
            assert (await ended_with(slow))[0] is grpc.StatusCode.ABORTED


async def test_one_that_does_not_even_read_loses_what_it_holds(tmp_path: Path) -> None:
    """C49: its stream is in the middle of a write that never gets through."""
    async with (
        open_hub(tmp_path, settings=QUICK) as hub,
        hub.subscriber("edgecontroller", credit=1000),
    ):
        for number in range(200):
            message = report("p", str(number), operation="insert")
            message.content = b"x" * 100_000
            hub.receive(f"node-{number}", 1, message)
        await hub.upstream.until_taken()
        async with hub.subscriber("edgecontroller", credit=1000) as good:
            assert len({one.node_id for one in await good.take(200)}) == 200
        await hub.until(lambda: hub.metric("subscribers") == 0)


async def test_an_acknowledgement_of_more_than_anybody_can_hold_is_refused(tmp_path: Path) -> None:
    """C49: going through it would take time from everybody."""
    async with open_hub(tmp_path) as hub, hub.subscriber("edgecontroller") as cloud:
        await cloud.acknowledge(*range(1, 65_538))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cloud.next()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 65536 ids in a request" in str(refused.value.details())

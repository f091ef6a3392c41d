"""Publishes of as much as a call may ask for: others are served meanwhile, and answers fit."""

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from services.dispatcher.servicer import MAX_OUTCOMES
from tests.support.certs import TestAuthority
from tests.support.figures import Figures
from tests.support.hub import RunningHub, request, running_hub
from tests.support.strangers import shown

# A third of the lease: what nobody may wait longer than.
_BEAT_SECONDS = 5.0


async def _latency(hub: RunningHub, number: int) -> float:
    begun = time.perf_counter()
    await hub.accept(request("edge-1", name="bystander", version=number))
    return time.perf_counter() - begun


async def test_others_are_served_while_the_largest_frame_is_handled(
    tmp_path: Path, authority: TestAuthority, figures: Figures
) -> None:
    """C45: 100 requests with 100 nodes each, twice, to nodes that nobody knows. No bystander waits for long;
    the answers come to a client that takes 4 MiB, as gRPC clients do unless told otherwise."""
    async with running_hub(tmp_path, authority) as hub:
        idle = sorted([await _latency(hub, number) for number in range(1, 101)])
        nodes = [f"unknown-{number}".ljust(200, "x") for number in range(100)]
        frame = pb.PublishStreamRequest(
            requests=[request(*nodes, name=f"cm{number}", message_id=f"m{number}") for number in range(100)]
        )
        async with grpc.aio.insecure_channel(hub.address("dispatcher")) as channel:
            call = DispatcherServiceStub(channel).PublishStream()

            async def publish() -> int:
                for _ in range(2):
                    await call.write(frame)
                await call.done_writing()
                return sum([len(one.outcomes) async for answer in call for one in answer.responses])

            publishing = asyncio.create_task(publish())
            busy: list[float] = []
            while not publishing.done():
                busy.append(await _latency(hub, 101 + len(busy)))
            assert await publishing == 2 * MAX_OUTCOMES
        figures(shown("publish, two frames of 10 000 unknown ids", idle, sorted(busy)))
        assert max(busy) < _BEAT_SECONDS


async def test_a_frame_of_more_is_refused_and_others_of_the_hub_go_on(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C45: requests times nodes."""
    async with running_hub(tmp_path, authority) as hub:
        nodes = [f"n{number}" for number in range(1000)]
        call = hub.cloud.PublishStream()
        requests = [request(*nodes, name=f"cm{number}") for number in range(11)]
        await call.write(pb.PublishStreamRequest(requests=requests))
        with pytest.raises(grpc.aio.AioRpcError, match="11000 nodes") as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await hub.accept(request("edge-1"))

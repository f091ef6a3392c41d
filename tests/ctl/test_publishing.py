"""A publish to several nodes ends as its worst delivery; what a lost dispatcher leaves open is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import grpc
import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceServicer, add_DispatcherServiceServicer_to_server
from cloudhub.v1.message_pb2 import Message
from ctl.faults import CtlFault, ExitCode
from ctl.processes import Dispatcher
from ctl.publishing import NODES_AT_ONCE, Delivery, exit_code, publish


class Failing(DispatcherServiceServicer):
    """Takes a number of publishes, then fails as a dispatcher whose store is away."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.sizes: list[int] = []

    async def Publish(
        self, request: pb.PublishRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.PublishResponse:
        self.sizes.append(len(request.node_ids))
        if len(self.sizes) > self.takes:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        outcomes = [pb.NodeOutcome(node_id=one, outcome=pb.OUTCOME_ACCEPTED) for one in request.node_ids]
        return pb.PublishResponse(message_id=f"m{len(self.sizes)}", outcomes=outcomes)

    def PublishStream(self, request_iterator: object, context: object) -> NoReturn:
        raise NotImplementedError

    def Subscribe(self, request_iterator: object, context: object) -> NoReturn:
        raise NotImplementedError

    def FindUnknownNodes(self, request: object, context: object) -> NoReturn:
        raise NotImplementedError

    def ExplainMessage(self, request: object, context: object) -> NoReturn:
        raise NotImplementedError


@asynccontextmanager
async def dispatcher(servicer: Failing) -> AsyncIterator[Dispatcher]:
    server = grpc.aio.server()
    add_DispatcherServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Dispatcher("dispatcher", f"127.0.0.1:{port}", channel, 5.0)
    finally:
        await server.stop(None)


def requests(*nodes_of_each: int) -> list[pb.PublishRequest]:
    return [
        pb.PublishRequest(
            message=Message(resource=f"r{number}"), node_ids=[f"edge-{n}" for n in range(nodes)]
        )
        for number, nodes in enumerate(nodes_of_each)
    ]


async def test_many_nodes_go_in_parts_and_the_bar_moves() -> None:
    steps: list[int] = []
    servicer = Failing(10)

    async with dispatcher(servicer) as one:
        done = await publish(one, requests(NODES_AT_ONCE + 3, 1), steps.append)

    assert servicer.sizes == steps == [NODES_AT_ONCE, 3, 1]
    assert [one.message_id for one in done[-4:]] == ["m2", "m2", "m2", "m3"]
    assert exit_code(done, waited=False) is ExitCode.OK


async def test_a_dispatcher_that_goes_away_leaves_one_part_unknown_and_the_rest_unsent() -> None:
    servicer = Failing(1)

    async with dispatcher(servicer) as one:
        done = await publish(one, requests(1, 1, 1), lambda _: None)

    assert [delivery.outcome for delivery in done] == ["accepted", "unknown", "not sent"]
    assert "cannot be reached (gone)" in done[1].detail
    assert len(servicer.sizes) == 2
    assert exit_code(done, waited=False) is ExitCode.UNREACHABLE


async def test_a_dispatcher_that_takes_nothing_is_a_fault() -> None:
    async with dispatcher(Failing(0)) as one:
        with pytest.raises(CtlFault) as raised:
            await asyncio.wait_for(publish(one, requests(1, 1), lambda _: None), 10)

    assert raised.value.code is ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    ("outcomes", "states", "waited", "code"),
    [
        (["accepted", "accepted"], ["", ""], False, ExitCode.OK),
        (["accepted", "stale"], ["", ""], False, ExitCode.FAILED),
        (["accepted", "unavailable"], ["", ""], False, ExitCode.UNREACHABLE),
        (["accepted", "accepted"], ["acknowledged", "acknowledged"], True, ExitCode.OK),
        (["accepted", "accepted"], ["acknowledged", "in flight"], True, ExitCode.TIMED_OUT),
        (["accepted", "accepted"], ["unknown", "acknowledged"], True, ExitCode.TIMED_OUT),
        (["accepted", "accepted"], ["parked", "pending"], True, ExitCode.FAILED),
        (["accepted", "accepted"], ["acknowledged", "ended"], True, ExitCode.FAILED),
        (["accepted", "accepted"], ["acknowledged", "gone"], True, ExitCode.FAILED),
    ],
)
def test_the_worst_delivery_gives_the_exit_code(
    outcomes: list[str], states: list[str], waited: bool, code: ExitCode
) -> None:
    done = [
        Delivery("r", "1", "m", "edge-1", outcome, state=state)
        for outcome, state in zip(outcomes, states, strict=True)
    ]

    assert exit_code(done, waited=waited) is code

"""Large frames of edges, through a whole hub with its defaults, to a program with gRPC's defaults."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from services.connector.connections import ConnectionLimits
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, Subscriber, running_hub

MIB = 1024 * 1024
LIMIT = ConnectionLimits().frame_most_bytes


@asynccontextmanager
async def plain_program(hub: RunningHub, *modules: str) -> AsyncIterator[Subscriber]:
    """It has set no option of gRPC: what it receives is bounded by 4 MiB."""
    async with grpc.aio.insecure_channel(hub.address("dispatcher")) as channel:
        stub: Any = DispatcherServiceStub(channel)
        call = stub.Subscribe(wait_for_ready=True)
        await call.write(pb.SubscribeRequest(subscription=pb.Subscription(modules=modules)))
        try:
            yield Subscriber(call)
        finally:
            call.cancel()


def content_of(frame_bytes: int, **route: str) -> str:
    """A JSON string so long that the frame of `StockEdge.send` with it is about that large."""
    return "x" * (frame_bytes - 512)


@pytest.mark.parametrize("group", ["user", "resource"])
async def test_a_frame_at_the_limit_reaches_a_program_with_grpcs_defaults(
    tmp_path: Path, authority: TestAuthority, group: str
) -> None:
    """Kubernetes objects have up to 1.5 MiB, as base64 a third more; small messages beside it are not added
    to its response, which has 4 MiB. Durable uploads and requests alike."""
    module, operation = ("router", "upload") if group == "user" else ("edgecontroller", "insert")
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        large = content_of(LIMIT)
        for content in ("before", large, large, "after"):
            await edge.send(operation, "default/configmap/c", content, group=group)
        async with plain_program(hub, module) as program:
            got = [await program.until(lambda one: one.message.operation == operation, 30) for _ in range(4)]
        assert [len(json.loads(one.message.content)) for one in got] == [6, len(large), len(large), 5]


async def test_what_no_program_can_receive_is_refused_with_a_reason(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """Connectors that let more in than programs get: the edge is told, the node's history and the metric have
    the reason, and what comes behind it is handed on. Nothing is stored for ever."""
    changes = {"frame_most_bytes": 8 * MIB}
    async with (
        running_hub(tmp_path, authority, connector=changes) as hub,
        hub.edge() as edge,
        plain_program(hub, "router", "edgecontroller") as program,
    ):
        huge = content_of(5 * MIB)
        ids = [
            await edge.send("upload", "data", huge, group="user", sync=True),
            await edge.send("query", "default/secret/s", huge),
        ]
        for msg_id in ids:
            answer = await edge.next(20)
            assert answer["header"]["parent_msg_id"] == msg_id
            assert answer["route"]["operation"] == "error"
            assert "allowed are 4194304" in answer["content"]
        # Nobody waits for an answer to these.
        await edge.send("upload", "data", huge, group="user")
        await edge.send("update", "default/podstatus/p", huge)
        await edge.send("upload", "data", "small", group="user", sync=True)
        assert (await edge.next(20))["content"] == "OK"
        small = await program.until(lambda one: one.message.operation == "upload", 20)
        assert json.loads(small.message.content) == "small"
        assert hub.metric("dispatcher", "upstream_dropped_total", reason="message_too_large") == 4
        notes = await noted(hub, 4)
        assert {note.reason.split(":")[0] for note in notes} == {"message_refused"}
        assert "query default/secret/s" in notes[1].reason


async def noted(hub: RunningHub, number: int, node_id: str = "edge-1") -> list[pb.DeliveryEvent]:
    """What is noted of a node, once it is so much."""
    request = pb.InspectNodeRequest(node_id=node_id)
    async with asyncio.timeout(10):
        while True:
            notes = (await hub.dispatcher_admin.InspectNode(request, timeout=5)).notes
            if len(notes) >= number:
                assert {note.kind for note in notes} == {"noted"}
                return list(notes)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("transport", ["websocket", "quic"])
async def test_a_frame_over_the_limit_ends_its_link_with_the_reason_everywhere(
    tmp_path: Path, authority: TestAuthority, transport: str
) -> None:
    """C33: in the log of both, in the node's history, in a metric; the session ended as a breach."""
    changes = {"frame_most_bytes": 20_000}
    with capture_logs() as logs:
        async with (
            running_hub(tmp_path, authority, connector=changes) as hub,
            hub.fleet("edge-1", transport=transport) as fleet,
        ):
            await fleet["edge-1"].upload(b'"' + b"x" * 30_000 + b'"')
            (note, *_) = await noted(hub, 1)
            assert note.reason.startswith("link_refused: frame_too_big: ")
            assert "20000" in note.reason
            assert hub.metric("connector", "frames_refused_total", reason="frame_too_big") >= 1
            assert hub.metric("dispatcher", "node_notices_total", notice="link_refused") >= 1
    for event in ("link.closed", "session.closed"):
        told = next(line for line in logs if line["event"] == event)
        assert (told["node"], told["reason"]) == ("edge-1", "protocol_error")
        assert told["detail"].startswith("frame_too_big: ")
    (line,) = [line for line in logs if line["event"] == "node.noticed"]
    assert line["detail"] == note.reason.removeprefix("link_refused: ")

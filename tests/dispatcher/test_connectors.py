"""Batches towards a connector: `services.dispatcher.connectors`."""

import asyncio

import pytest

from cloudhub.v1 import link_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.dispatcher import connectors
from services.dispatcher.connectors import ConnectorStream


def encoded(message_id: str) -> bytes:
    return Message(id=message_id, traceparent="publish").SerializeToString()


@pytest.fixture
async def stream() -> ConnectorStream:
    return ConnectorStream("c1", "connector-0")


async def test_whatever_is_queued_travels_in_one_batch(stream: ConnectorStream) -> None:
    stream.hello("d1", "dispatcher-0", 15.0)
    stream.admit(1, 5)
    stream.refuse(2, pb.Refusal(reason=pb.REFUSAL_REASON_NODE_LIMIT, detail="full", retry_after_seconds=3))
    stream.send(
        1,
        5,
        1,
        Message(id="m1", traceparent="publish").SerializeToString(),
        direct=False,
        traceparent="deliver",
    )
    stream.send(1, 5, 1, encoded("m2"), direct=True)
    stream.send(1, 5, 2, encoded("m1"), direct=False, repeats=1)
    stream.receipt(1, 5, 17)
    stream.read_control(1, 5, paused=True)
    stream.probe(1, 5)
    stream.close(1, 5, pb.CLOSE_REASON_EVICTED, "by an operator")
    stream.heartbeat(2.5)
    (batch,) = await stream.next_batches()
    overridden = batch.downstream[0].message
    assert Message.FromString(overridden) == Message(id="m1", traceparent="deliver")
    assert batch == pb.DispatcherBatch(
        hello=pb.DispatcherHello(dispatcher_id="d1", name="dispatcher-0", lease_seconds=15.0),
        verdicts=[
            pb.LinkVerdict(link=1, epoch=5),
            pb.LinkVerdict(
                link=2,
                refusal=pb.Refusal(reason=pb.REFUSAL_REASON_NODE_LIMIT, detail="full", retry_after_seconds=3),
            ),
        ],
        downstream=[
            pb.DownstreamFrame(link=1, epoch=5, number=1, message=overridden),
            pb.DownstreamFrame(
                link=1,
                epoch=5,
                number=1,
                direct=True,
                message=encoded("m2"),
            ),
            pb.DownstreamFrame(link=1, epoch=5, number=2, message=encoded("m1"), repeats=1),
        ],
        receipts=[pb.Receipt(link=1, epoch=5, through=17)],
        read_controls=[pb.ReadControl(link=1, epoch=5, paused=True)],
        probes=[pb.Probe(link=1, epoch=5)],
        closes=[pb.LinkClose(link=1, epoch=5, reason=pb.CLOSE_REASON_EVICTED, detail="by an operator")],
        heartbeat=True,
        lease_age_seconds=2.5,
    )


async def test_a_batch_is_sealed_at_its_bound_of_frames(stream: ConnectorStream) -> None:
    count = connectors.MOST_BATCH_FRAMES * 2 + 1
    for number in range(count):
        stream.send(1, 5, number, Message(id=f"m{number}").SerializeToString(), direct=False)
    batches = await stream.next_batches()
    assert [len(batch.downstream) for batch in batches] == [connectors.MOST_BATCH_FRAMES] * 2 + [1]
    numbers = [frame.number for batch in batches for frame in batch.downstream]
    assert numbers == list(range(count))


async def test_a_batch_is_sealed_at_its_bound_of_bytes(
    stream: ConnectorStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectors, "MOST_BATCH_BYTES", 3100)
    for number in range(5):
        stream.send(1, 5, number, Message(content=b"x" * 1450).SerializeToString(), direct=False)
    assert [len(batch.downstream) for batch in await stream.next_batches()] == [2, 2, 1]


async def test_a_verdict_comes_before_the_messages_of_its_link(stream: ConnectorStream) -> None:
    """The receiver handles a batch's fields by number; what comes in a later batch comes later."""
    for number in range(connectors.MOST_BATCH_FRAMES):
        stream.send(1, 5, number, Message().SerializeToString(), direct=False)
    stream.admit(2, 9)
    stream.send(2, 9, 1, Message().SerializeToString(), direct=False)
    first, second = await stream.next_batches()
    assert not first.verdicts
    assert [verdict.link for verdict in second.verdicts] == [2]
    assert [frame.link for frame in second.downstream] == [2]


async def test_waiting_ends_when_something_is_queued(stream: ConnectorStream) -> None:
    stream.heartbeat(2.5)
    await stream.next_batches()
    waiting = asyncio.ensure_future(stream.next_batches())
    await asyncio.wait([waiting], timeout=0)
    assert not waiting.done()
    stream.probe(3, 4)
    (batch,) = await asyncio.wait_for(waiting, 5)
    assert batch == pb.DispatcherBatch(probes=[pb.Probe(link=3, epoch=4)])

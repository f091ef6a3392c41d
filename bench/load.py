"""A publisher that keeps the hub busy: as fast as acknowledgements come, or at a steady rate."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle

import grpc

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from demo.fleet import Fleet
from demo.manifests import Versions

KEYS_PER_NODE = 200
MESSAGE_BYTES = 1100
MOST_PER_FRAME = 256
MOST_FRAMES_UNANSWERED = 8
MOST_UNACKNOWLEDGED = 4096
# Below the number of keys, so that no message is superseded before it is acknowledged.
MOST_UNACKNOWLEDGED_PER_NODE = KEYS_PER_NODE - 10
TICK_SECONDS = 0.01


class LoadFault(Exception):
    """The hub did not accept what it should have; the figures would be wrong."""


class _Stream:
    """One PublishStream call, with a bound on unanswered frames."""

    def __init__(self, call: "grpc.aio.StreamStreamCall[pb.PublishStreamRequest, pb.PublishStreamResponse]"):
        self._call = call
        self._room = asyncio.Semaphore(MOST_FRAMES_UNANSWERED)

    async def send(self, requests: list[pb.PublishRequest]) -> None:
        await self._room.acquire()
        await self._call.write(pb.PublishStreamRequest(requests=requests))

    async def finish(self) -> None:
        await self._call.done_writing()

    async def answers(self) -> None:
        """Until the stream ends. Raises LoadFault if anything was not accepted."""
        other: Counter[str] = Counter()
        while isinstance(answer := await self._call.read(), pb.PublishStreamResponse):
            self._room.release()
            for response in answer.responses:
                for outcome in response.outcomes:
                    if outcome.outcome != pb.OUTCOME_ACCEPTED or outcome.duplicate_of:
                        other[f"{pb.Outcome.Name(outcome.outcome)} {outcome.reason} {outcome.detail}"] += 1
            if other:
                raise LoadFault(f"not accepted: {dict(other)}")


class _Streams:
    """One stream per dispatcher; frames go to each in turn."""

    def __init__(self, streams: "Sequence[_Stream]") -> None:
        self._streams = streams
        self._turns = cycle(streams)

    async def send(self, requests: list[pb.PublishRequest]) -> None:
        await next(self._turns).send(requests)

    async def finish(self) -> None:
        for stream in self._streams:
            await stream.finish()


class Load:
    """Publishes messages of 1.1 KB to the nodes in turn, each about one of a node's 200 objects in turn.

    An object's next version comes after the last one was acknowledged: it may go through another dispatcher.
    """

    def __init__(self, dispatchers: Sequence[grpc.aio.Channel], fleet: Fleet) -> None:
        self._stubs = [DispatcherServiceStub(channel) for channel in dispatchers]
        self._fleet = fleet
        self._versions = Versions()
        self._turn = 0
        self._published = [0] * len(fleet.node_ids)
        base = uuid.uuid5(uuid.NAMESPACE_DNS, "bench.cloudhub").hex
        self._uids = [f"{base[:28]}{key:04d}".encode() for key in range(KEYS_PER_NODE)]
        head = b'{"kind":"ConfigMap","metadata":{"name":"bench","uid":"%s"},"data":{"text":"'
        self._head, self._tail = head, b"x" * (MESSAGE_BYTES - len(head) - 34) + b'"}}'

    @property
    def published(self) -> int:
        """Messages handed to the stream so far."""
        return sum(self._published)

    async def saturate(self, stop: asyncio.Event) -> None:
        """Until `stop`: as many messages as the bounds on what is unacknowledged allow."""

        async def frames(call: _Streams) -> None:
            while not stop.is_set():
                requests = self._next_frame(self._room())
                if requests:
                    await call.send(requests)
                else:
                    await self._fleet.changed()

        await self._run(frames)

    async def pace(self, per_second: float, seconds: float) -> None:
        """A steady rate for so long; what is due at a tick goes in one frame."""

        async def frames(call: _Streams) -> None:
            loop = asyncio.get_running_loop()
            started, sent = loop.time(), 0
            while (elapsed := loop.time() - started) < seconds:
                due = int(per_second * elapsed) - sent
                if due > 0:
                    sent += due
                    for start in range(0, due, MOST_PER_FRAME):
                        await call.send(self._next_frame(min(MOST_PER_FRAME, due - start)))
                await asyncio.sleep(max(TICK_SECONDS, 1 / per_second))

        await self._run(frames)

    async def settled(self, seconds: float) -> None:
        """Until everything published is acknowledged. Raises FleetFault."""
        await self._fleet.until(
            lambda report: report.acknowledged >= self.published, "all acknowledged", seconds
        )

    def _room(self) -> int:
        """How many messages may be published now."""
        return min(MOST_PER_FRAME, MOST_UNACKNOWLEDGED - (self.published - self._fleet.report.acknowledged))

    def _next_frame(self, most: int) -> list[pb.PublishRequest]:
        """Up to `most` messages for the nodes whose turn it is and that have room."""
        acknowledged = self._fleet.report.by_node
        nodes = len(self._published)
        requests: list[pb.PublishRequest] = []
        skipped = 0
        while len(requests) < most and skipped < nodes:
            node = self._turn
            self._turn = (self._turn + 1) % nodes
            count = self._published[node]
            if count - acknowledged[node] >= MOST_UNACKNOWLEDGED_PER_NODE:
                skipped += 1
                continue
            skipped = 0
            self._published[node] = count + 1
            key = count % KEYS_PER_NODE
            requests.append(
                pb.PublishRequest(
                    message=Message(
                        resource_version=str(self._versions.next()),
                        source="edgecontroller",
                        group="resource",
                        operation="update",
                        resource=f"bench/configmap/object-{key}",
                        content=self._head % self._uids[key] + self._tail,
                    ),
                    node_ids=[self._fleet.node_ids[node]],
                    ack_mode=pb.ACK_MODE_ACK,
                )
            )
        return requests

    async def _run(self, frames: Callable[[_Streams], Awaitable[None]]) -> None:
        each = [_Stream(stub.PublishStream()) for stub in self._stubs]
        streams = _Streams(each)
        async with asyncio.TaskGroup() as group:
            for stream in each:
                group.create_task(stream.answers(), name="publish answers")
            await frames(streams)
            await streams.finish()

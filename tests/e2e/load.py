"""A publisher that knows what was accepted, whatever dies meanwhile."""

import asyncio
import json
import random
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from services.runtime.rpc import open_channel
from tests.support.invariants import Acceptances, Place

ANSWER_SECONDS = 10.0


def object_request(
    node_ids: list[str],
    resource: str,
    uid: str,
    version: int,
    operation: str = "update",
    message_id: str = "",
) -> pb.PublishRequest:
    """One version of an object, to be acknowledged."""
    metadata = {"uid": uid, "name": resource.rsplit("/", 1)[1], "resourceVersion": str(version)}
    return pb.PublishRequest(
        message=Message(
            id=message_id,
            source="edgecontroller",
            group="resource",
            operation=operation,
            resource=resource,
            resource_version=str(version),
            content=json.dumps({"metadata": metadata, "data": {"value": "x" * 200}}).encode(),
        ),
        node_ids=node_ids,
        ack_mode=pb.ACK_MODE_ACK,
    )


@dataclass(slots=True)
class _Object:
    """What a place holds in the cloud; `generation` counts the objects that were there."""

    resource: str
    generation: int = 0
    is_live: bool = False

    @property
    def uid(self) -> str:
        return f"{self.resource.rsplit('/', 1)[1]}-{self.generation}"


@dataclass(slots=True)
class _Open:
    """A request whose outcome is not known for all of its nodes yet."""

    request: pb.PublishRequest
    uid: str
    version: int
    attempts: int = 0


class Publisher:
    """Publishes rounds over a PublishStream: growing versions of a few objects, now and then a delete, and
    afterwards another object under the same name.

    A round ends when every outcome is known: what broke or was UNAVAILABLE is repeated under its id.
    """

    def __init__(
        self, name: str, address: str, node_ids: list[str], objects: int, acceptances: Acceptances
    ) -> None:
        self._name = name
        self._address = address
        self._node_ids = node_ids
        self._objects = [_Object(f"default/configmap/{name}-{number}") for number in range(objects)]
        self._acceptances = acceptances
        self._versions = count(1)
        self._random = random.Random(name)
        self._stopping = False
        self.broken_calls = 0
        self.unavailable = 0
        self.found_accepted = 0

    def stop(self) -> None:
        """The round at work is the last one."""
        self._stopping = True

    async def run(self, pause_seconds: float) -> None:
        """Publishes until stopped; the pause keeps the load bounded."""
        waiting: list[_Open] = []
        async with open_channel(self._address) as channel:
            stub: Any = DispatcherServiceStub(channel)
            while waiting or not self._stopping:
                call = stub.PublishStream(wait_for_ready=True)
                try:
                    while waiting or not self._stopping:
                        waiting = waiting or [self._next(one) for one in self._objects]
                        async with asyncio.timeout(ANSWER_SECONDS):
                            waiting = await self._exchange(call, waiting)
                        await asyncio.sleep(pause_seconds)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                    self.broken_calls += 1
                    for item in waiting:
                        item.attempts += 1
                    await asyncio.sleep(pause_seconds)
                finally:
                    call.cancel()

    def _next(self, one: _Object) -> _Open:
        if one.is_live and self._random.random() < 0.1:
            operation, one.is_live = "delete", False
        elif one.is_live:
            operation = "update"
        else:
            operation, one.is_live = "insert", True
            one.generation += 1
        version = next(self._versions)
        message_id = f"{self._name}-{version}"
        request = object_request(self._node_ids, one.resource, one.uid, version, operation, message_id)
        return _Open(request, one.uid, version)

    async def _exchange(self, call: Any, waiting: list[_Open]) -> list[_Open]:
        """Sends what waits and takes the answers; what has still to be repeated."""
        await call.write(pb.PublishStreamRequest(requests=[item.request for item in waiting]))
        answer = await call.read()
        if answer is grpc.aio.EOF:
            raise asyncio.InvalidStateError("the dispatcher ended the stream")
        assert len(answer.responses) == len(waiting), "one response per request, in order"
        return [
            item
            for item, response in zip(waiting, answer.responses, strict=True)
            if self._take(item, response)
        ]

    def _take(self, item: _Open, response: pb.PublishResponse) -> bool:
        """Whether some of the nodes' outcomes are still unknown."""
        unknown = []
        for outcome in response.outcomes:
            if outcome.outcome == pb.OUTCOME_UNAVAILABLE:
                self.unavailable += 1
                unknown.append(outcome.node_id)
                continue
            if outcome.outcome == pb.OUTCOME_STALE:
                # Only an attempt that broke before its answer can have brought the node this version.
                assert item.attempts, outcome
                assert outcome.reason == "ACKNOWLEDGED", outcome
                self.found_accepted += 1
            else:
                assert outcome.outcome == pb.OUTCOME_ACCEPTED, outcome
            place = Place(outcome.node_id, item.request.message.resource)
            if item.request.message.operation == "delete":
                self._acceptances.deleted(place)
            else:
                self._acceptances.stored(place, item.uid, item.version)
        item.attempts += 1
        del item.request.node_ids[:]
        item.request.node_ids.extend(unknown)
        return bool(unknown)

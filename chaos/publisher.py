"""A publisher that takes down what was accepted, whatever dies meanwhile."""

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc

from chaos.clock import RunClock
from chaos.history import Outcome, Publish
from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from demo.manifests import Versions
from services.runtime.rpc import open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, Security

ANSWER_SECONDS = 1.5
ROUNDS_PER_STREAM = 15
"""Then another dispatcher has its turn."""
OWN_OBJECTS = 6
SHARED_OBJECTS = 4
DELETED = 0.1
SHARED = 0.4
"""Chances: that a live object is deleted, that a round has an object of all publishers too."""


@dataclass(slots=True)
class _Object:
    """What a path holds in the cloud; `generation` counts the objects that were there."""

    name: str
    is_shared: bool
    generation: int = 0
    is_live: bool = False

    @property
    def resource(self) -> str:
        return f"default/configmap/{self.name}"

    @property
    def uid(self) -> str:
        return f"{self.name}-{self.generation}"


@dataclass(slots=True)
class _Open:
    """A request some of whose outcomes are not known yet."""

    request: pb.PublishRequest
    one: _Object
    uid: str
    version: int
    sent_at: float
    attempts: int = 0


class Publisher:
    """Growing versions of a few objects for all nodes; of its own objects some are deleted and made anew.

    Shared objects are updated by all publishers, through whichever dispatcher each of them talks to.
    What broke or was UNAVAILABLE is repeated under its id, at another dispatcher, until its outcome is known.
    """

    def __init__(
        self,
        name: str,
        dispatchers: Sequence[str],
        node_ids: list[str],
        versions: Versions,
        clock: RunClock,
        security: Security = PLAINTEXT_LOOPBACK,
    ) -> None:
        self._name = name
        self._security = security
        self._dispatchers = dispatchers
        self._node_ids = node_ids
        self._versions = versions
        self._clock = clock
        self._chance = random.Random(name)
        self._own = [_Object(f"{name}-{number}", is_shared=False) for number in range(OWN_OBJECTS)]
        self._shared = [_Object(f"shared-{number}", is_shared=True) for number in range(SHARED_OBJECTS)]
        self._stopping = False
        self._avoided = ""
        self.history: list[Publish] = []
        self.accepted = 0
        self.broken_calls = 0

    def stop(self) -> None:
        """The round at work is the last one."""
        self._stopping = True

    def avoid(self, dispatcher: str) -> None:
        """Goes to others than this one from the next round on; empty: to all again."""
        self._avoided = dispatcher

    async def run(self, pause_seconds: float) -> None:
        """Publishes until stopped and answered; cancelled, what is open is taken down as unknown."""
        waiting: list[_Open] = []
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(open_channel(address, self._security))
                for address in self._dispatchers
            ]
            turn = self._chance.randrange(len(channels))
            try:
                while waiting or not self._stopping:
                    turn = (turn + 1) % len(channels)
                    if self._dispatchers[turn] == self._avoided:
                        continue
                    stub: Any = DispatcherServiceStub(channels[turn])
                    call = stub.PublishStream()
                    try:
                        for _ in range(ROUNDS_PER_STREAM):
                            waiting = waiting or self._round()
                            if not waiting or self._dispatchers[turn] == self._avoided:
                                break
                            async with asyncio.timeout(ANSWER_SECONDS):
                                await self._exchange(call, waiting)
                            await asyncio.sleep(pause_seconds)
                    except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                        self.broken_calls += 1
                        await asyncio.sleep(pause_seconds)
                    finally:
                        call.cancel()
            finally:
                for item in waiting:
                    for node_id in item.request.node_ids:
                        self._enter(item, node_id, Outcome.UNKNOWN)

    def _round(self) -> list[_Open]:
        if self._stopping:
            return []
        chosen = [self._chance.choice(self._own)]
        if self._chance.random() < SHARED:
            chosen.append(self._chance.choice(self._shared))
        return [self._next(one) for one in chosen]

    def _next(self, one: _Object) -> _Open:
        if one.is_live and not one.is_shared and self._chance.random() < DELETED:
            operation, one.is_live = "delete", False
        elif one.is_live:
            operation = "update"
        else:
            operation, one.is_live = "insert", True
            one.generation += not one.is_shared
        version = self._versions.next()
        metadata = {"name": one.name, "uid": one.uid, "resourceVersion": str(version)}
        request = pb.PublishRequest(
            message=Message(
                id=f"{self._name}-{version}",
                source="edgecontroller",
                group="resource",
                operation=operation,
                resource=one.resource,
                resource_version=str(version),
                content=json.dumps({"metadata": metadata, "data": {"text": "x" * 200}}).encode(),
            ),
            node_ids=self._node_ids,
            ack_mode=pb.ACK_MODE_ACK,
        )
        return _Open(request, one, one.uid, version, self._clock.now())

    async def _exchange(self, call: Any, waiting: list[_Open]) -> None:
        """Sends what waits and takes the answers; what has still to be repeated stays in `waiting`."""
        for item in waiting:
            item.attempts += 1
        await call.write(pb.PublishStreamRequest(requests=[item.request for item in waiting]))
        answer = await call.read()
        if answer is grpc.aio.EOF:
            raise asyncio.InvalidStateError("the dispatcher ended the stream")
        waiting[:] = [
            item
            for item, response in zip(waiting, answer.responses, strict=True)
            if self._take(item, response)
        ]

    def _take(self, item: _Open, response: pb.PublishResponse) -> bool:
        """Whether some of the nodes' outcomes are still unknown."""
        unknown = []
        for outcome in response.outcomes:
            if outcome.outcome == pb.OUTCOME_UNAVAILABLE:
                unknown.append(outcome.node_id)
            elif outcome.outcome == pb.OUTCOME_ACCEPTED:
                self._enter(item, outcome.node_id, Outcome.ACCEPTED)
            elif outcome.outcome != pb.OUTCOME_STALE:
                self._enter(item, outcome.node_id, Outcome.REJECTED)
            elif item.attempts > 1 and (outcome.reason == "ACKNOWLEDGED" or not item.one.is_shared):
                # Nobody else publishes this version: an attempt that broke before its answer was taken.
                self._enter(item, outcome.node_id, Outcome.ACCEPTED)
            else:
                self._enter(item, outcome.node_id, Outcome.STALE)
        del item.request.node_ids[:]
        item.request.node_ids.extend(unknown)
        return bool(unknown)

    def _enter(self, item: _Open, node_id: str, outcome: Outcome) -> None:
        self.accepted += outcome is Outcome.ACCEPTED
        self.history.append(
            Publish(
                node_id,
                item.one.resource,
                item.uid,
                item.version,
                item.request.message.operation,
                outcome,
                item.sent_at,
                self._clock.now(),
            )
        )

"""A cloud program of the demo: publishes the manifests, then an update every few seconds."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import grpc

from cloudhub.v1.dispatcher_pb2 import PublishRequest, PublishStreamRequest, PublishStreamResponse
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from demo.ledger import Ledger
from demo.manifests import Manifest, Versions, publish_request

OFFER_ROUNDS = 4
"""An offer is inserted, and deleted so many updates later."""

Told = Callable[[str], None]


class Workload:
    """Publishes over one stream; every outcome goes into the ledger."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        manifests: Sequence[Manifest],
        node_ids: list[str],
        ledger: Ledger,
        tell: Told,
    ) -> None:
        self._stub = DispatcherServiceStub(channel)
        self._manifests = manifests
        self._node_ids = node_ids
        self._ledger = ledger
        self._tell = tell
        self._versions = Versions()
        self._round = 0
        self._offer: Manifest | None = None

    async def run(
        self, stop: asyncio.Event, every_seconds: float, *, known: bool, settle: Callable[[], Awaitable[None]]
    ) -> None:
        """Everything once, then updates until `stop`; the last offer is deleted at the end.

        `known`: the hub has had the objects before, so that the first publishes are updates too.
        `settle` is awaited before that end, to close the cuts in the network.
        """
        call = self._stub.PublishStream()
        operation = "update" if known else "insert"
        await self._publish(call, [(manifest, operation, {}) for manifest in self._manifests])
        self._tell(f"{len(self._manifests)} manifests published to {len(self._node_ids)} nodes ({operation})")
        while not await _set_within(stop, every_seconds):
            await self._publish(call, self._next_round())
        await settle()
        if self._offer is not None:
            await self._publish(call, [(self._offer, "delete", {})])
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass

    def _next_round(self) -> list[tuple[Manifest, str, dict[str, str]]]:
        self._round += 1
        chosen = random.choice(self._manifests)
        work = [(chosen, "update", {"demo.cloudhub/revision": str(self._round)})]
        text = f"update of {chosen.resource}"
        if self._round % OFFER_ROUNDS == 1:
            if self._offer is not None:
                work.append((self._offer, "delete", {}))
                text += f", delete of {self._offer.resource}"
            self._offer = _offer(self._versions.next())
            work.append((self._offer, "insert", {}))
            text += f", insert of {self._offer.resource}"
        self._tell(text)
        return work

    async def _publish(
        self,
        call: grpc.aio.StreamStreamCall[PublishStreamRequest, PublishStreamResponse],
        work: Sequence[tuple[Manifest, str, dict[str, str]]],
    ) -> None:
        """One frame: a request per object, each to all nodes."""
        requests: list[PublishRequest] = [
            publish_request(manifest, operation, self._versions.next(), self._node_ids, annotations)
            for manifest, operation, annotations in work
        ]
        await call.write(PublishStreamRequest(requests=requests))
        answer = await call.read()
        if not isinstance(answer, PublishStreamResponse):
            # The stream has ended: its status says why.
            await call.wait_for_connection()
            raise ConnectionError(f"the publish stream ended: {await call.details()}")
        for (manifest, _, _), request, response in zip(work, requests, answer.responses, strict=True):
            self._ledger.enter(request, response, manifest.uid)


def _offer(number: int) -> Manifest:
    """A short-lived object with a name of its own."""
    name = f"offer-{number}"
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "store"}},
        "data": {"offer.json": '{"sku": "40010010", "percent": 15, "badge": "Today"}'},
    }
    return Manifest("ConfigMap", "retail", name, body)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True

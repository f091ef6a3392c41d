"""The dispatchers of a connector: a stream to each, and which one a node goes to."""

import asyncio
from collections.abc import Sequence

from cloudhub.v1 import link_pb2
from services.connector.dispatcher_stream import DispatcherStream, StreamUser
from services.connector.metrics import ConnectorMetrics
from services.connector.rendezvous import best_dispatcher


class Dispatchers:
    """A static list of addresses."""

    def __init__(
        self,
        addresses: Sequence[str],
        hello: link_pb2.ConnectorHello,
        user: StreamUser,
        metrics: ConnectorMetrics,
    ) -> None:
        self._streams = {
            address: DispatcherStream(address, hello, user, metrics) for address in dict.fromkeys(addresses)
        }

    @property
    def attached(self) -> int:
        """How many streams are up."""
        return sum(stream.attached for stream in self._streams.values())

    def choose(self, node_id: str) -> DispatcherStream | None:
        """The node's best attached dispatcher; None if none is attached."""
        attached = [address for address, stream in self._streams.items() if stream.attached]
        best = best_dispatcher(node_id, attached)
        return self._streams[best] if best is not None else None

    async def run(self) -> None:
        """Keeps every stream up until cancelled or finished."""
        async with asyncio.TaskGroup() as group:
            for address, stream in self._streams.items():
                group.create_task(stream.run(), name=f"stream {address}")

    async def finish(self, seconds: float) -> None:
        """Ends every stream cleanly."""
        await asyncio.gather(*(stream.finish(seconds) for stream in self._streams.values()))

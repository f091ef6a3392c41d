"""What a connector holds."""

from collections.abc import Sequence

from cloudhub.v1.resources_pb2 import ConnectorResources
from services.connector.connection_owner import ConnectionOwner
from services.connector.dispatchers import Dispatchers
from services.connector.links import Links
from services.connector.transfers import Transfers
from services.runtime.resources import process_resources


class ConnectorHoldings:
    """Counts what the parts of a connector keep."""

    def __init__(
        self,
        listeners: Sequence[ConnectionOwner],
        links: Links,
        transfers: Transfers,
        dispatchers: Dispatchers,
    ) -> None:
        self._listeners = tuple(listeners)
        self._links = links
        self._transfers = transfers
        self._dispatchers = dispatchers

    def resources(self, *, collect_garbage: bool = False) -> ConnectorResources:
        """The answer to GetResources."""
        admitted, streams = self._links.admitted(), self._dispatchers.streams
        held = ConnectorResources(
            process=process_resources(collect_garbage=collect_garbage),
            connections=sum(listener.connections for listener in self._listeners),
            openings=sum(listener.openings for listener in self._listeners),
            announced_links=len(self._links) - len(admitted),
            links=len(admitted),
            links_without_dispatcher=sum(link.stream is None for link in admitted),
            moves=len(self._transfers),
            dispatcher_streams=len(streams),
            dispatcher_stream_bytes=sum(stream.outgoing.waiting_bytes for stream in streams),
        )
        for link in admitted:
            if link.state is not None:
                held.queued_frames += len(link.state.outbound)
                held.queued_bytes += link.state.outbound.queued_bytes
                held.frames_without_receipt += len(link.state.inbound)
        return held

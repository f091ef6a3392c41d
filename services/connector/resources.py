"""What a connector holds."""

from cloudhub.v1.resources_pb2 import ConnectorResources
from services.connector.dispatchers import Dispatchers
from services.connector.links import Links
from services.connector.listener import EdgeListener
from services.connector.transfers import Transfers
from services.runtime.resources import process_resources


class ConnectorHoldings:
    """Counts what the parts of a connector keep."""

    def __init__(
        self, listener: EdgeListener, links: Links, transfers: Transfers, dispatchers: Dispatchers
    ) -> None:
        self._listener = listener
        self._links = links
        self._transfers = transfers
        self._dispatchers = dispatchers

    def resources(self, *, collect_garbage: bool = False) -> ConnectorResources:
        """The answer to GetResources."""
        admitted, streams = self._links.admitted(), self._dispatchers.streams
        held = ConnectorResources(
            process=process_resources(collect_garbage=collect_garbage),
            connections=self._listener.connections,
            openings=self._listener.openings,
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

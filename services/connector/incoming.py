"""Handles what a dispatcher sends, in the order of the link stream's contract."""

from cloudhub.v1 import link_pb2
from services.connector.edge_link import EdgeLink, LinkStream
from services.connector.links import Links
from services.connector.metrics import ConnectorMetrics
from services.connector.transfers import Transfers


class IncomingBatches:
    """Finds the link of each element; one of another epoch, stream or link is dropped and counted."""

    def __init__(self, links: Links, transfers: Transfers, metrics: ConnectorMetrics) -> None:
        self._links = links
        self._transfers = transfers
        self._metrics = metrics

    def handle(self, stream: LinkStream, batch: link_pb2.DispatcherBatch) -> None:
        """Verdicts, messages (written once all of the batch are queued), receipts, controls, closes."""
        for verdict in batch.verdicts:
            moving = self._links.get(verdict.link)
            if moving is not None and moving.state is not None:
                self._transfers.verdict(stream, moving, verdict)
            else:
                self._links.verdict(stream, verdict)
        touched: dict[int, EdgeLink] = {}
        for frame in batch.downstream:
            link = self._find(stream, frame.link, frame.epoch, "downstream")
            if link:
                link.send(frame)
                touched[frame.link] = link
        for link in touched.values():
            link.pump()
        for receipt in batch.receipts:
            link = self._find(stream, receipt.link, receipt.epoch, "receipt")
            if link:
                link.receipt(receipt.through)
        for control in batch.read_controls:
            link = self._find(stream, control.link, control.epoch, "read_control")
            if link:
                link.control_reading(control.paused)
        for probe in batch.probes:
            link = self._find(stream, probe.link, probe.epoch, "probe")
            if link:
                link.report_activity(ping=probe.ping)
        for close in batch.closes:
            link = self._find(stream, close.link, close.epoch, "close")
            if link and close.reason == link_pb2.CLOSE_REASON_TRANSFERRED:
                self._transfers.let_go(link)
            elif link:
                link.close(close.reason, close.detail)

    def _find(self, stream: LinkStream, number: int, epoch: int, element: str) -> EdgeLink | None:
        link = self._links.get(number)
        if link is None or link.stream is not stream:
            # Usual for a moment after a link ended: its last elements cross our report.
            self._metrics.dropped.labels(element, "link_gone").inc()
            return None
        if link.state is None or not link.state.owns(epoch):
            self._metrics.dropped.labels(element, "epoch").inc()
            return None
        return link

"""What waits to go to one dispatcher, in batches in the order of the link stream's contract."""

from collections import deque
from collections.abc import Callable

from cloudhub.v1 import link_pb2
from services.connector.codec import ReadFrame

MOST_ELEMENTS = 512
MOST_BYTES = 4 * 1024 * 1024
_ELEMENT_BYTES = 64


class OutgoingBatches:
    """Elements are laid straight into the batch that will carry them: protobuf copies what is appended.

    A link's elements keep their order: within a batch by the contract's field order, across batches
    because everything goes into the last one.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called whenever there is something to take."""
        self._wake = wake
        self._batches: deque[link_pb2.ConnectorBatch] = deque()
        self._elements = 0
        self._last_bytes = 0
        self._bytes = 0
        self._sizes: deque[tuple[int, int]] = deque()
        # Reports in the last batch, so that a further one of the same link replaces it.
        self._written: dict[int, link_pb2.WrittenReport] = {}

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def waiting_bytes(self) -> int:
        """Bytes not taken yet, roughly."""
        return self._bytes

    def draining(self) -> None:
        """This connector takes no new links."""
        self._room(_ELEMENT_BYTES).draining = True

    def announce(self, announcement: link_pb2.LinkAnnouncement) -> None:
        """A link asks for a session."""
        self._room(_ELEMENT_BYTES + announcement.ByteSize()).announcements.append(announcement)

    def transfer(self, announcement: link_pb2.LinkAnnouncement, epoch: int) -> None:
        """An admitted link asks for its session to move here."""
        self._room(_ELEMENT_BYTES + announcement.ByteSize()).transfers.add(link=announcement, epoch=epoch)

    def written(self, link: int, epoch: int, acknowledged_through: int, direct_through: int) -> None:
        """Bytes of a link are with the operating system; only the last report of a link counts."""
        report = self._written.get(link)
        if report is None or report.epoch != epoch:
            report = self._room(_ELEMENT_BYTES).written.add(link=link, epoch=epoch)
            self._written[link] = report
        report.acknowledged_through = acknowledged_through
        report.direct_through = direct_through

    def upstream(self, link: int, epoch: int, number: int, frame: ReadFrame, size: int) -> None:
        """A frame of an edge."""
        entry = self._room(size + _ELEMENT_BYTES).upstream.add(
            link=link, epoch=epoch, number=number, size_bytes=size
        )
        frame.fill(entry.message)

    def activity(self, link: int, epoch: int, idle_seconds: float) -> None:
        """The answer to a probe, behind all frames queued before it."""
        self._room(_ELEMENT_BYTES).activity.add(link=link, epoch=epoch, idle_seconds=idle_seconds)

    def end(
        self,
        link: int,
        epoch: int,
        reason: link_pb2.CloseReason.ValueType,
        detail: str,
        *,
        by_edge: bool = False,
        close_code: int = 0,
    ) -> None:
        """A link is gone, the last that is told of it."""
        self._room(_ELEMENT_BYTES + 4 * len(detail)).ended.add(
            link=link, epoch=epoch, reason=reason, detail=detail, by_edge=by_edge, close_code=close_code
        )
        self._written.pop(link, None)

    def answer(self, answer: link_pb2.ConnectorAnswer) -> None:
        """To what a dispatcher asked."""
        self._room(_ELEMENT_BYTES + answer.ByteSize()).answers.append(answer)

    def heartbeat(self) -> None:
        """We are alive."""
        self._room(1).heartbeat = True

    def take(self) -> tuple[link_pb2.ConnectorBatch, int] | None:
        """The next batch to write and its number of elements; it may no longer be changed."""
        if not self._batches:
            return None
        batch = self._batches.popleft()
        elements, size = self._sizes.popleft() if self._batches else (self._elements, self._last_bytes)
        self._bytes -= size
        if not self._batches:
            self._elements = self._last_bytes = 0
            self._written = {}
        return batch, elements

    def _room(self, size: int) -> link_pb2.ConnectorBatch:
        """The batch for an element of about `size` bytes."""
        full = self._elements >= MOST_ELEMENTS or self._last_bytes + size > MOST_BYTES
        if not self._batches or (full and self._elements):
            if self._batches:
                self._sizes.append((self._elements, self._last_bytes))
            self._batches.append(link_pb2.ConnectorBatch())
            self._elements = self._last_bytes = 0
            self._written = {}
        self._elements += 1
        self._last_bytes += size
        self._bytes += size
        self._wake()
        return self._batches[-1]

"""What an operator should know of a node itself: told in its history, in a metric and in the log."""

from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum

from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.outbox.records import Event, EventKind
from services.dispatcher.takeovers import MANY_TAKEOVERS, Takeovers
from services.runtime.clock import Clock
from services.runtime.line_budget import MAX_PARTIES, LineBudget
from services.runtime.logs import get_log

_log = get_log(__name__)
SECONDS_PER_LINE = 60.0
MAX_STORED_VERSION = 2**63 - 1
"""Of an object in the metaserver of a stock edge."""
MAX_DETAIL_CHARS = 500


class Notice(StrEnum):
    """What it is about; label of the metric and first word of the line in the history."""

    LINK_REFUSED = "link_refused"
    """The hub ended the link for what came over it: a frame over the limit, one that is no message."""
    MESSAGE_REFUSED = "message_refused"
    """A message of the node went nowhere."""
    FLAPPING = "flapping"
    """Its links supersede each other."""
    RETURNED = "returned"
    """It was deleted, and came back by itself as a new node."""
    VERSION_TOO_LARGE = "version_too_large"
    """It was published a version that a stock edge acknowledges and does not store in its metaserver."""


class NodeNotices:
    """`note` writes a line of a node's history, which counts what is told again and again
    (`outbox.repetitions`). The log has a line a minute of each kind about a node."""

    def __init__(self, note: Callable[[Event], None], clock: Clock, metrics: DispatcherMetrics) -> None:
        self._note = note
        self._clock = clock
        self._metrics = metrics
        self._lines = LineBudget(1, SECONDS_PER_LINE)
        self._takeovers = Takeovers()
        self._last: OrderedDict[str, str] = OrderedDict()

    def last(self, node_id: str) -> str:
        """The last one about the node, as far as it is remembered; empty: none."""
        return self._last.get(node_id, "")

    def superseded(self, node_id: str, epoch: int, detail: str) -> None:
        """A live session of a node was superseded by a newer link."""
        seconds = self._takeovers.superseded(node_id, self._clock.monotonic())
        if seconds is not None:
            times = f"superseded {MANY_TAKEOVERS} times in {seconds:.0f} s"
            why = "two agents have the certificate of one node, or its links die unnoticed"
            self.tell(node_id, epoch, Notice.FLAPPING, f"{times}: {why}; {detail}", seldom=True)

    def deleted(self, node_id: str) -> None:
        """A session ended with its node."""
        self._takeovers.deleted(node_id, self._clock.monotonic())

    def opened(self, node_id: str, epoch: int) -> None:
        """A node opened a session."""
        seconds = self._takeovers.opened(node_id, self._clock.monotonic())
        if seconds is not None:
            detail = f"{seconds:.0f} s after it was deleted, as a new node: revoke it to keep it out"
            self.tell(node_id, epoch, Notice.RETURNED, detail)

    def accepted(self, node_id: str, version: int, key: str) -> None:
        """A version above MAX_STORED_VERSION was accepted for the node."""
        detail = (
            f"version {version} of {key} is above 2^63-1: a stock edge acknowledges it, and its metaserver "
            "does not get it"
        )
        self.tell(node_id, 0, Notice.VERSION_TOO_LARGE, detail, seldom=True)

    def tell(self, node_id: str, epoch: int, notice: Notice, detail: str, *, seldom: bool = False) -> None:
        """Counts it, and tells it in the node's history and in the log; in both once a minute where it is
        `seldom` worth a line, since what is told goes on."""
        self._metrics.node_notices.labels(notice).inc()
        detail = detail[:MAX_DETAIL_CHARS].replace("\0", "\ufffd")
        told = self._lines.take(f"{node_id} {notice}", self._clock.monotonic())
        self._last.pop(node_id, None)
        self._last[node_id] = f"{notice}: {detail}"
        if len(self._last) > MAX_PARTIES:
            self._last.popitem(last=False)
        if told is not None or not seldom:
            at_ms, reason = self._clock.wall_ms(), f"{notice}: {detail}"
            self._note(Event(node_id, EventKind.NOTED, at_ms, "", epoch=epoch, reason=reason))
        if told is not None:
            _log.warning("node.noticed", node=node_id, epoch=epoch, reason=str(notice), detail=detail, **told)

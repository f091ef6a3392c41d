"""What the stored uploads of each node take up: kept with each transaction, counted anew now and then."""

from itertools import islice

from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.dispatcher.upstream.shares import Amount, Shares
from services.dispatcher.upstream.upload_store import UploadStore
from services.runtime.clock import Clock
from services.runtime.errors import StoreUnavailable
from services.runtime.logs import get_log

# How often is counted what is in the store: what others take of the total is known since then.
COUNT_SECONDS = 15.0
NODES_PER_COUNT = 512

log = get_log(__name__)


class UploadAccounts:
    """The nodes' `shares` of the store. Only whoever writes to the store may call `count` and
    `count_arrived`, between two transactions, so that what is counted is what there is."""

    def __init__(
        self,
        store: UploadStore,
        clock: Clock,
        metrics: UpstreamMetrics,
        max_per_node: Amount,
        max_total: Amount,
    ) -> None:
        self.shares = Shares(max_per_node, max_total)
        self.is_due = False
        self._store = store
        self._clock = clock
        self._max_per_node = max_per_node
        self._max_total = max_total
        self._arrived: dict[str, None] = {}
        self._oldest_ms = 0
        metrics.uploads_rows.set_function(lambda: self.shares.used.messages)
        metrics.uploads_bytes.set_function(lambda: self.shares.used.size_bytes)
        metrics.uploads_oldest.set_function(self._oldest_seconds)

    def arrived(self, node_id: str) -> None:
        """A node's session came here: it may have uploads at other dispatchers, which count as well."""
        self._arrived[node_id] = None

    async def count_arrived(self) -> None:
        """Counts what those have. Raises StoreUnavailable."""
        while nodes := list(islice(self._arrived, NODES_PER_COUNT)):
            for node_id, amount in (await self._store.of_nodes(nodes)).items():
                self.shares.set(node_id, amount)
                del self._arrived[node_id]

    async def count(self) -> None:
        """Counts everything; if the store does not answer, the next time."""
        self.is_due = False
        try:
            counted = await self._store.count()
        except StoreUnavailable as error:
            log.debug("uploads.not_counted", detail=error.detail)
            return
        self.shares.replace(counted.own)
        self.shares.elsewhere = counted.elsewhere
        self._oldest_ms = counted.oldest_n // 1000

    def describe(self, bound: str) -> str:
        """What is to be said of an upload that a share has no room for, by the share's bound."""
        if bound.startswith("node"):
            most = self._max_per_node
            return (
                "no more uploads of this node are kept until subscribers take some: at most "
                f"{most.messages}, and {most.size_bytes} bytes; send it again later"
            )
        most = self._max_total
        return (
            "the uploads of all nodes leave no room for more of this one's until subscribers take some: at "
            f"most {most.messages}, and {most.size_bytes} bytes; send it again later"
        )

    def _oldest_seconds(self) -> float:
        if not self._oldest_ms or not self.shares.used.messages:
            return 0.0
        return max(0.0, (self._clock.wall_ms() - self._oldest_ms) / 1000)

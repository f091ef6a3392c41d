"""Which nodes of a fleet are connected, and who waits for how many."""

import asyncio


class ConnectedNodes:
    """Told of each link by its fleet."""

    def __init__(self) -> None:
        self._nodes: set[str] = set()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def changed(self, node_id: str, *, opened: bool) -> None:
        """A node's link was opened, or ended."""
        if not opened:
            self._nodes.discard(node_id)
            return
        self._nodes.add(node_id)
        for wanted, reached in self._waiters:
            if len(self._nodes) >= wanted and not reached.done():
                reached.set_result(None)
        self._waiters = [waiter for waiter in self._waiters if not waiter[1].done()]

    async def reached(self, count: int) -> None:
        """Returns when so many are connected at once."""
        if len(self._nodes) < count:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((count, waiter))
            await waiter

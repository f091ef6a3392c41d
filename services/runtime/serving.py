"""Whether the services of a process can do their work. Pure."""

from collections.abc import Collection, Mapping

READY = "ready"
"""What a service needs that names nothing else."""
LIVE = "live"
"""The name whose health says that the process works, whatever it waits for: what it is restarted by."""


class Serving:
    """The one place where it is decided: a service serves if all that it needs is there, and the process
    neither drains nor stops, which nothing undoes.

    `needs` are, by the name of each service, the names of what it needs; the process as a whole (named "")
    needs all of it, LIVE nothing but that the process has not stopped. Nothing is there before it was
    `learned`.
    """

    def __init__(self, needs: Mapping[str, Collection[str]]) -> None:
        everything = frozenset(need for one in needs.values() for need in one)
        self._needs = {"": everything or {READY}} | {name: frozenset(one) for name, one in needs.items()}
        self._there: dict[str, bool] = {}
        self._drains = self._stopped = False

    def learned(self, **there: bool) -> None:
        """Whether each of what services need is there now; of what is not named nothing changes."""
        self._there |= there

    def drains(self) -> None:
        """The process takes no new work from here on."""
        self._drains = True

    def stopped(self) -> None:
        """It answers nothing any more."""
        self._drains = self._stopped = True

    def serves(self, service: str) -> bool | None:
        """Whether the service does its work; None if there is none of that name."""
        if service == LIVE:
            return not self._stopped
        if (needs := self._needs.get(service)) is None:
            return None
        return not self._drains and all(self._there.get(need, False) for need in needs)

"""When a dispatcher that still holds uploads counts as gone. Pure."""

from collections.abc import Collection, Iterable

from services.dispatcher.upstream.uploads import RELEASED


class GoneHolders:
    """Watches holders that no list of live dispatchers has. A holder is gone after `wait_seconds` of that
    by this process's own observation: one that came after the last list must have shown up by then."""

    def __init__(self, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._since: dict[str, float] = {}

    def observe(
        self, holders: Iterable[str], listed: Collection[str], listed_at: float, now: float
    ) -> list[str]:
        """Those to take over from. `listed` is the last list and `listed_at` when it came; an old one
        says nothing about anybody but those who released their rows themselves."""
        absent = {holder for holder in holders if holder not in listed}
        gone = [RELEASED] if RELEASED in absent else []
        if listed_at < now - self._wait_seconds:
            self._since.clear()
            return gone
        self._since = {
            holder: self._since.get(holder, now) for holder in sorted(absent) if holder != RELEASED
        }
        return gone + [
            holder
            for holder, since in self._since.items()
            if since < listed_at and now - since >= self._wait_seconds
        ]

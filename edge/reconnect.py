"""When to dial again after a link ended or was refused.

Pure: randomness is an argument. An edge never gives up; it waits longer each time, spread by
chance so that a fleet does not come back in one instant, and it follows what the hub advises.
"""

from dataclasses import dataclass

# A link that lived this long ends the growth of the delays.
STEADY_SECONDS = 10.0
# HTTP statuses and close codes that say: as you are, you will be refused again. The hub's own
# are 4001 (a newer link of this node took over: do not fight it), 4003 (the node was deleted) and
# 4004 (it was revoked).
_NOT_AS_YOU_ARE = frozenset({400, 401, 403, 404, 1002, 1003, 1007, 1008, 1009, 4001, 4003, 4004})
# Close codes by which the hub says that it does not take what it was sent (docs/protocol.md).
OBJECTIONS = frozenset({1007, 1008, 1009})
# Of these the node's certificate may be the reason.
UNPROVEN = frozenset({401, 403, 4004})
_RESTARTING = 1012
_TRY_LATER = frozenset({429, 503, 1013})
_TRY_LATER_ATTEMPT = 4


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """How a link, or the attempt to open one, ended."""

    cause: str
    """`closed` (a close frame), `lost`, `refused` (an HTTP status), `failed` (no connection), `cut`,
    `silent`, `malformed` or `stopped`."""
    detail: str = ""
    code: int = 0
    """The close code or the HTTP status; 0 if there was neither."""
    retry_after_seconds: float = 0.0
    open_seconds: float = 0.0
    """How long the link was open; 0 if it never was."""
    answered: bool = False
    """Whether the hub itself ended it: then another transport would fare no better."""
    certificate_refused: bool = False
    """Whether the hub does not let in the node that the certificate names, or not with this certificate."""


class Reconnect:
    """The delays of one node: exponential from `first_seconds` to `most_seconds`."""

    def __init__(self, first_seconds: float, most_seconds: float) -> None:
        self._first_seconds = first_seconds
        self._most_seconds = most_seconds
        self._attempt = 0

    def delay(self, end: LinkEnd, spread: float) -> float:
        """Seconds to wait after `end`; `spread` in [0, 1) places it in the jitter."""
        if end.open_seconds >= STEADY_SECONDS or end.code == _RESTARTING:
            self._attempt = 0
        self._attempt += 1
        if end.code in _TRY_LATER:
            self._attempt = max(self._attempt, _TRY_LATER_ATTEMPT)
        longest = min(self._most_seconds, self._first_seconds * 2.0 ** min(self._attempt - 1, 64))
        if end.code in _NOT_AS_YOU_ARE:
            longest = self._most_seconds
        delay = longest * (0.5 + 0.5 * spread)
        if end.retry_after_seconds > 0:
            # Never before the time advised, and not all at that time.
            return max(delay, end.retry_after_seconds * (1.0 + 0.25 * spread))
        return delay


def retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header; 0 if it is absent, a date or no number up to a day."""
    if value is None or not value.strip().isdecimal():
        return 0.0
    return float(min(int(value.strip()[:9]), 86_400))

"""When a stock edge dials. Pure: time is told as waits, and `pace` makes all of them shorter."""

from dataclasses import dataclass

DIALS_PER_ROUND = 5
DIAL_SECONDS = 5.0
REST_SECONDS = 30.0
KEEPALIVE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Dial:
    """The next attempt: after a wait, with the header `ConnectionUse: msg` so many times."""

    after_seconds: float
    uses: int


class Dialling:
    """One node's. A round is five dials 5 s apart, each with one more header than the one before it; then it
    rests for 30 s. Neither statuses nor Retry-After change that, and chance has no part in it."""

    def __init__(self, pace: float = 1.0) -> None:
        self._pace = pace
        self._dialled = 0
        self._rest_seconds = 0.0

    def next(self) -> Dial:
        """What comes now: call it once per attempt."""
        wait = self._rest_seconds
        if self._dialled == DIALS_PER_ROUND:
            self._dialled = 0
            wait = DIAL_SECONDS + REST_SECONDS
        elif self._dialled:
            wait = DIAL_SECONDS
        self._rest_seconds = 0.0
        self._dialled += 1
        return Dial(wait / self._pace, self._dialled)

    def lost(self) -> None:
        """A link that was open has ended, and the edge has noticed: it rests, then begins a round."""
        self._dialled, self._rest_seconds = 0, REST_SECONDS

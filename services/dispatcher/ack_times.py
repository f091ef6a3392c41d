"""How long a link usually takes from a message's bytes to its acknowledgement. Pure."""


class AckTimes:
    """Mean and deviation as TCP estimates round trips (RFC 6298), of one link.

    A message waits behind those before it in the buffers of a slow link: resent as if the link were fast, it
    takes room from messages that have not come through once.
    """

    __slots__ = ("_deviation", "_mean")

    def __init__(self) -> None:
        self._mean: float | None = None
        self._deviation = 0.0

    def add(self, seconds: float) -> None:
        """A message took so long, from its first bytes on."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8

    @property
    def unusual_seconds(self) -> float:
        """A message that is not acknowledged after so long probably never will be; 0 if nothing is known."""
        return 0.0 if self._mean is None else self._mean + 4 * self._deviation

"""The time that this process saw pass, for what goes with age."""

from services.runtime.clock import Clock
from services.runtime.logs import get_log
from services.runtime.seen_time import SeenTime

log = get_log(__name__)

# A clock that is set by less than this is being kept, not stepped.
CLOCK_SLACK_SECONDS = 60.0
# As long as anything is kept that is not about a node or a certificate: join tokens.
HOLD_SECONDS = 30 * 86_400.0


class Seen:
    """A step forward of the wall clock makes nothing old (`SeenTime`). A restart believes the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._time = SeenTime(slack_seconds=CLOCK_SLACK_SECONDS, hold_seconds=HOLD_SECONDS)
        self._look()

    def _look(self) -> SeenTime:
        stepped = self._time.look(self._clock.wall_ms(), self._clock.monotonic())
        if stepped:
            log.warning("clock.stepped", seconds=round(stepped), kept="by elapsed time, not by the clock")
        return self._time

    def now_ms(self) -> int:
        """What ended before this, on the record, may go."""
        return self._look().seen_ms

    def before_ms(self, seconds: float) -> int:
        """What was stamped earlier has been kept for so long."""
        return self._look().before_ms(seconds)

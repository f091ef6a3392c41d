"""Who takes messages of modules, what each of them holds, and whose turn it is. No I/O and no clock."""

from collections import OrderedDict
from dataclasses import dataclass, field

from services.dispatcher.upstream.lane import Lane, Turns
from services.dispatcher.upstream.parcel import Parcel

# So much of its credit may a subscriber get of one lane in a row while another one has nothing to do.
TURN_PART = 2
MOST_PER_TURN = 128
# One delivery may be held so many times as long as silence may last, by a subscriber that settles others.
OLDEST_TIMES = 10


@dataclass(slots=True)
class Subscriber:
    """A cloud program, or with `is_relay` another dispatcher that has some.

    `held` are its deliveries in the order they were handed to it. `own` are lanes with something for it
    alone; `lanes` all that are its own, by module, and of these it was `promised` some without holding
    anything of them yet. `progress_at` is when it last settled something, in the caller's seconds. It gets no
    more while it holds `most_held`, or as much as `max_held_bytes`, which its last delivery may pass.
    """

    number: int
    modules: dict[str, None]
    most_held: int
    is_relay: bool
    max_held_bytes: float
    held_bytes: int = 0
    held: dict[int, Parcel] = field(default_factory=dict)
    own: Turns = field(default_factory=OrderedDict)
    lanes: dict[str, dict[Lane, None]] = field(default_factory=dict)
    promised: int = 0
    last_delivery_id: int = 0
    progress_at: float = float("-inf")

    @property
    def has_room(self) -> bool:
        """Whether it may get more than it holds and was promised."""
        return len(self.held) + self.promised < self.most_held and self.held_bytes < self.max_held_bytes

    def hold(self, parcel: Parcel) -> int:
        """It is handed a parcel; gives back the delivery's id."""
        self.last_delivery_id += 1
        self.held[self.last_delivery_id] = parcel
        self.held_bytes += parcel.size_bytes
        return self.last_delivery_id

    def let_go(self, delivery_id: int) -> Parcel | None:
        """A delivery is settled or taken back; None if it does not hold it."""
        parcel = self.held.pop(delivery_id, None)
        if parcel is not None:
            self.held_bytes -= parcel.size_bytes
        return parcel

    @property
    def turn(self) -> int:
        """How many parcels of a lane it gets in a row while another subscriber waits for work."""
        return max(1, min(MOST_PER_TURN, self.most_held // TURN_PART))

    def lanes_of(self, module: str) -> dict[Lane, None]:
        """Those of a module that are its own."""
        return self.lanes.get(module, {})

    def oldest_at(self) -> float | None:
        """When it got what it has held longest; None if it holds nothing."""
        oldest = next(iter(self.held.values()), None)
        return None if oldest is None else oldest.handed_at

    def silent_seconds(self, now: float, most_seconds: float) -> float | None:
        """How long it has held something without a word, if that is too long; None if it is not.

        Too long: it settled nothing for `most_seconds`, or has held one delivery for ten times that.
        """
        oldest_at = self.oldest_at()
        if oldest_at is None:
            return None
        silent = now - max(oldest_at, self.progress_at)
        if silent >= most_seconds:
            return silent
        return now - oldest_at if now - oldest_at >= OLDEST_TIMES * most_seconds else None


class Crowd:
    """The subscribers of one module, and which of them wait for work.

    Those that `ask` found nothing the last time and have room: they stand in line for what comes next, and
    each that is chosen goes to the end. `local` are those that are no relays.
    """

    __slots__ = ("_asking", "_local_asking", "all", "draining", "local")

    def __init__(self) -> None:
        self.all: dict[int, Subscriber] = {}
        self.local: dict[int, Subscriber] = {}
        self.draining = 0  # lanes whose owner gets no more of them
        self._asking: OrderedDict[int, Subscriber] = OrderedDict()
        self._local_asking: OrderedDict[int, Subscriber] = OrderedDict()

    def enter(self, subscriber: Subscriber) -> None:
        """One more."""
        self.all[subscriber.number] = subscriber
        if not subscriber.is_relay:
            self.local[subscriber.number] = subscriber

    def exit(self, subscriber: Subscriber) -> None:
        """One less."""
        del self.all[subscriber.number]
        self.local.pop(subscriber.number, None)
        self.busy(subscriber)

    def ask(self, subscriber: Subscriber) -> None:
        """It waits for work."""
        self._asking[subscriber.number] = subscriber
        if not subscriber.is_relay:
            self._local_asking[subscriber.number] = subscriber

    def busy(self, subscriber: Subscriber) -> None:
        """It does not."""
        self._asking.pop(subscriber.number, None)
        self._local_asking.pop(subscriber.number, None)

    def next(self, *, is_local: bool) -> Subscriber | None:
        """Whose turn it is to get a lane; None if nobody that may have it waits for work."""
        line = self._local_asking if is_local else self._asking
        while line:
            number, subscriber = next(iter(line.items()))
            if subscriber.has_room:
                self._asking.move_to_end(number)
                if not subscriber.is_relay:
                    self._local_asking.move_to_end(number)
                return subscriber
            self.busy(subscriber)  # it was woken, and asks again when it has room
        return None

    def waits_beside(self, owner: Subscriber, *, is_local: bool) -> bool:
        """Whether another than `owner` waits for work."""
        line = self._local_asking if is_local else self._asking
        return len(line) > (owner.number in line)

    def richest(self, module: str) -> Subscriber:
        """Who owns most lanes of it; there must be somebody."""
        return max(self.all.values(), key=lambda one: len(one.lanes_of(module)))

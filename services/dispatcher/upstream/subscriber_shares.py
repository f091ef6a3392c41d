"""What each caller may have of a dispatcher's subscriptions and of the modules they name. No I/O, no clock.

Each lifecycle event is copied for each module that somebody named, and dispatchers tell each other all of
them in one request: so those that nodes send nothing to have a bound together, of which each caller has a
share (`shares`). The hub's own modules need none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.dispatcher.upstream.routing import HUB_MODULES
from services.dispatcher.upstream.shares import Amount, Shares
from services.runtime.errors import Crowded
from services.runtime.names import shown

MAX_MODULES = 64
"""That a subscription may name, and all subscriptions of a dispatcher together."""

TOO_MANY_SUBSCRIPTIONS, TOO_MANY_MODULES = "TOO_MANY_SUBSCRIPTIONS", "TOO_MANY_MODULES"


@dataclass(frozen=True, slots=True)
class Subscribed:
    """What one subscription takes of its caller's share."""

    caller: str
    modules: tuple[str, ...]


class SubscriberShares:
    """Of one dispatcher. A module that several callers name counts for the one that has named it longest."""

    def __init__(self, max_subscriptions: int, max_modules: int = MAX_MODULES - len(HUB_MODULES)) -> None:
        self._max_subscriptions = max_subscriptions
        self._max_modules = max_modules
        self._subscriptions = _shares_of(max_subscriptions)
        self._modules = _shares_of(max_modules)
        self._callers: dict[str, dict[str, int]] = {}  # module -> caller -> subscriptions, the longest first

    @property
    def modules(self) -> int:
        """How many are named, the hub's own aside."""
        return len(self._callers)

    def enter(self, caller: str, modules: Sequence[str]) -> Subscribed:
        """One more subscription of a caller. Raises Crowded, and then nothing is taken."""
        if self._subscriptions.refusal(caller, 0):
            raise Crowded(
                TOO_MANY_SUBSCRIPTIONS,
                f"{shown(caller)} has {self._subscriptions.of(caller).messages} subscriptions, all callers "
                f"{self._subscriptions.used.messages}, and there may be {self._max_subscriptions}, a quarter "
                "only for callers with none: use those that are there",
            )
        others = tuple(dict.fromkeys(module for module in modules if module not in HUB_MODULES))
        new = [module for module in others if module not in self._callers]
        for taken, module in enumerate(new):
            if self._modules.refusal(caller, 0):
                self._modules.remove(caller, 0, taken)
                raise Crowded(
                    TOO_MANY_MODULES,
                    f"module {module!r} has no room: {shown(caller)} has named "
                    f"{self._modules.of(caller).messages} besides the hub's own, all callers "
                    f"{len(self._callers)}, and there may be {self._max_modules}, a quarter only for callers "
                    "that named none",
                )
            self._modules.add(caller, 0)
        self._subscriptions.add(caller, 0)
        for module in others:
            callers = self._callers.setdefault(module, {})
            callers[caller] = callers.get(caller, 0) + 1
        return Subscribed(caller, others)

    def leave(self, subscribed: Subscribed) -> None:
        """It is over."""
        caller = subscribed.caller
        self._subscriptions.remove(caller, 0)
        for module in subscribed.modules:
            callers = self._callers[module]
            owner = next(iter(callers))
            callers[caller] -= 1
            if callers[caller]:
                continue
            del callers[caller]
            if owner == caller:
                self._modules.remove(caller, 0)
                if callers:
                    self._modules.add(next(iter(callers)), 0)
            if not callers:
                del self._callers[module]


def _shares_of(total: int) -> Shares:
    return Shares(Amount(total, 0), Amount(total, 0))

"""What is fuzzed: values, and a check that no value may fail."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as fixed
from hypothesis.strategies import SearchStrategy

V = TypeVar("V")
Check: TypeAlias = Callable[[V], None]


@dataclass(frozen=True, slots=True)
class Target(Generic[V]):
    """`opened` gives the check: it raises AssertionError where a value shows a fault.

    What the check needs (a running hub) lives while it is open; when it is closed, that nothing was left
    over is checked too. A `pure` target needs nothing, so that coverage of the code can guide its values; if
    those are bytes, `seeds` gives some to begin with.
    """

    name: str
    about: str
    values: SearchStrategy[V]
    opened: Callable[[], AbstractContextManager[Check[V]]]
    pure: bool = False
    seeds: Callable[[], Iterable[bytes]] | None = None
    weight: int = 1
    """Its part of a number of values that is divided among targets: by how many of them take a second."""

    def property(
        self, check: Check[V], examples: int, derandomized: bool, seed: int | None = None
    ) -> Callable[[], None]:
        """A Hypothesis test of the check; `derandomized`: the same values each time. A `seed` is one more way
        to have the same ones again."""

        @settings(
            max_examples=examples,
            derandomize=derandomized,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(self.values)
        def holds(value: V) -> None:
            check(value)

        return holds if seed is None else fixed(seed)(holds)

    def examine(self, examples: int) -> None:
        """Checks that many values, the same each time."""
        with self.opened() as check:
            self.property(check, examples, derandomized=True)()

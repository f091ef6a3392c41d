"""A few values of every fuzz target, the same each time; `make fuzz` tries many more."""

import pytest

from fuzz.targets import TARGETS

# What a run of the tests can afford.
EXAMPLES = {
    "frames": 150,
    "quic": 100,
    "datagrams": 30,
    "settings": 30,
    "files": 30,
    "enrolment": 100,
    "links": 30,
    "requests": 200,
    "requests-postgresql": 100,
}


# The hub that is fuzzed draws its jitter in a thread of its own, at times while a value is made.
@pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module inside strategies:hypothesis.errors.HypothesisDeprecationWarning"
)
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_bears_any_value(name: str) -> None:
    """Invariant 10, C29: bad input gives a clear error to whoever sent it and harms nothing else."""
    TARGETS[name].examine(EXAMPLES[name])

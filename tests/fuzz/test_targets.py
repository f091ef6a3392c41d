"""A few values of every fuzz target, the same each time; `make fuzz` tries many more."""

import pytest

from fuzz.targets import TARGETS

# What a run of the tests can afford.
EXAMPLES = {
    "frames": 300,
    "contents": 300,
    "quic": 200,
    "datagrams": 60,
    "settings": 60,
    "secrets": 300,
    "files": 60,
    "enrolment": 200,
    "links": 60,
    "parties": 6,
    "requests": 400,
    "requests-postgresql": 200,
}


# The hub that is fuzzed draws its jitter in a thread of its own, at times while a value is made.
@pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module inside strategies:hypothesis.errors.HypothesisDeprecationWarning"
)
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_bears_any_value(name: str) -> None:
    """Invariant 10, C29: bad input gives a clear error to whoever sent it and harms nothing else."""
    TARGETS[name].examine(EXAMPLES[name])

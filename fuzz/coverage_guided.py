"""`python -m fuzz.coverage_guided TARGET CORPUS [libFuzzer's options]`: one pure target under Atheris."""

import sys
from collections.abc import Callable
from typing import Any

import atheris

with atheris.instrument_imports(include=["services"]):
    from fuzz.target import Check, Target
    from fuzz.targets import TARGETS


def _taking_bytes(target: Target[Any], check: Check[Any]) -> Callable[[bytes], None]:
    """The check for bytes of libFuzzer: they are the value, or Hypothesis makes one of them."""
    if target.seeds:
        return check
    made: Any = target.property(check, examples=1, derandomized=False)

    def by_hypothesis(data: bytes) -> None:
        made.hypothesis.fuzz_one_input(data)

    return by_hypothesis


def main() -> None:
    """Runs until the time that the options give is over, or ends the process with the input that failed."""
    target = TARGETS[sys.argv.pop(1)]
    with target.opened() as check:
        atheris.Setup(sys.argv, _taking_bytes(target, check))
        atheris.Fuzz()


if __name__ == "__main__":
    main()

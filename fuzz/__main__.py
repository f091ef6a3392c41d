"""`python -m fuzz`: what `make fuzz` does."""

import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from demo.postgres import MISSING, find_binaries
from fuzz.target import Target
from fuzz.targets import TARGETS
from services.runtime.logs import configure_logs

# Examples between two looks at the clock.
_ROUND = 200
_LIBFUZZER = ("-len_control=0", "-max_len=8192", "-timeout=20", "-print_final_stats=1", "-verbosity=0")


@dataclass(frozen=True, slots=True)
class _Budget:
    """How long a target is tried: a time, or a number of values if that is above 0."""

    seconds: float
    values: int
    seed: int | None

    def __str__(self) -> str:
        return f"{self.values} values" if self.values else f"{self.seconds:.0f} s"

    def is_over(self, examined: int, began: float) -> bool:
        """Whether that is enough; `began` is monotonic."""
        if self.values:
            return examined >= self.values
        return time.monotonic() - began >= self.seconds


def _by_hypothesis(target: Target[Any], budget: _Budget) -> int:
    """Checks random values until the budget is used up; how many. Raises what failed, after shrinking it."""
    examined = 0
    began = time.monotonic()
    with target.opened() as check:

        def counted(value: Any) -> None:
            nonlocal examined
            if budget.is_over(examined, began):
                return
            examined += 1
            check(value)

        for number in count():
            if budget.is_over(examined, began):
                break
            seed = None if budget.seed is None else budget.seed + number
            target.property(counted, _ROUND, derandomized=False, seed=seed)()
    return examined


def _by_coverage(target: Target[Any], budget: _Budget) -> int:
    """Atheris in a process of its own, since it ends the one that it runs in; its exit status."""
    corpus = Path(".hypothesis", "fuzz", target.name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds() if target.seeds else ()):
        Path(corpus, f"seed-{number}").write_bytes(seed)
    command = [sys.executable, "-m", "fuzz.coverage_guided", target.name, str(corpus), *_LIBFUZZER]
    if budget.seed is not None:
        command.append(f"-seed={budget.seed}")
    bound = f"-runs={budget.values}" if budget.values else f"-max_total_time={max(1, int(budget.seconds))}"
    return subprocess.run([*command, bound], check=False).returncode


def run(
    seconds: Annotated[float, typer.Option(min=1, help="for all targets together")] = 60.0,
    values: Annotated[
        int, typer.Option(min=0, help="instead: so many values, divided among the targets by their weights")
    ] = 0,
    seed: Annotated[
        int | None, typer.Option(min=1, help="the same seed makes the same values; none: others each time")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="only these; all by default")] = None,
) -> None:
    """Looks for input that the hub does not bear; stops at the first that it finds."""
    unknown = set(target or ()) - TARGETS.keys()
    if unknown:
        raise typer.BadParameter(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    chosen = [one for one in TARGETS.values() if not target or one.name in target]
    if find_binaries() is None:
        chosen = [one for one in chosen if one.name != "requests-postgresql"]
        print(f"fuzz: without requests-postgresql: {MISSING}")
    guided = importlib.util.find_spec("atheris") is not None
    if not guided and any(one.pure for one in chosen):
        print("fuzz: atheris is not installed for this Python; Hypothesis alone makes the values")
    # What the services say of each bad request is no news here.
    configure_logs("fuzz", "fuzz", "error", "auto")
    weights = sum(one.weight for one in chosen)
    for one in chosen:
        share = -(-values * one.weight // weights)
        budget = _Budget(seconds / len(chosen), share, seed)
        print(f"fuzz: {one.name}: {one.about}, {budget}", flush=True)
        if one.pure and guided:
            if status := _by_coverage(one, budget):
                raise SystemExit(status)
            if budget.values:
                print(f"fuzz: {one.name}: {budget.values} values, no fault", flush=True)
        else:
            print(f"fuzz: {one.name}: {_by_hypothesis(one, budget)} values, no fault", flush=True)


if __name__ == "__main__":
    typer.run(run)

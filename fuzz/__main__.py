"""`python -m fuzz`: what `make fuzz` does."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from demo.postgres import MISSING, find_binaries
from fuzz.target import Target
from fuzz.targets import TARGETS

# Examples between two looks at the clock.
_ROUND = 200
_LIBFUZZER = ("-len_control=0", "-max_len=8192", "-timeout=20", "-print_final_stats=1", "-verbosity=0")


def _by_hypothesis(target: Target[Any], seconds: float) -> int:
    """Checks random values until the time is over; how many. Raises what failed, after shrinking it."""
    examined = 0
    deadline = time.monotonic() + seconds
    with target.opened() as check:

        def counted(value: Any) -> None:
            nonlocal examined
            if time.monotonic() >= deadline:
                return
            examined += 1
            check(value)

        while time.monotonic() < deadline:
            target.property(counted, _ROUND, derandomized=False)()
    return examined


def _by_coverage(target: Target[Any], seconds: float) -> int:
    """Atheris in a process of its own, since it ends the one that it runs in; its exit status."""
    corpus = Path(".hypothesis", "fuzz", target.name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds() if target.seeds else ()):
        Path(corpus, f"seed-{number}").write_bytes(seed)
    command = [sys.executable, "-m", "fuzz.coverage_guided", target.name, str(corpus), *_LIBFUZZER]
    return subprocess.run([*command, f"-max_total_time={max(1, int(seconds))}"], check=False).returncode


def run(
    seconds: Annotated[float, typer.Option(min=1, help="for all targets together")] = 60.0,
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
    for one in chosen:
        share = seconds / len(chosen)
        print(f"fuzz: {one.name}: {one.about}, {share:.0f} s", flush=True)
        if one.pure and guided:
            if status := _by_coverage(one, share):
                raise SystemExit(status)
        else:
            print(f"fuzz: {one.name}: {_by_hypothesis(one, share)} values, no fault", flush=True)


if __name__ == "__main__":
    typer.run(run)

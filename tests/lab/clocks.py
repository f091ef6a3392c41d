"""A time of day that can be stepped for some processes: `python -m tests.lab.clocks FILE MODULE ...`.

Steps what Python programs read by `time.time` and `time.time_ns`; the monotonic clock goes on, as it does
when an operator sets the machine's clock. To set that would step everything: no namespace has its own.
"""

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

_NANOSECONDS = struct.Struct("q")


class SteppedClock:
    """The time of day of the processes that are launched with it; the file is shared with them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.write_bytes(_NANOSECONDS.pack(0))

    def step(self, seconds: int) -> None:
        """From now on their clocks differ from the machine's by so much."""
        with self._file.open("r+b") as file:
            file.write(_NANOSECONDS.pack(seconds * 1_000_000_000))

    def launched(self, module: str) -> list[str]:
        """What the interpreter is told to run a module so, but for its first words."""
        return ["tests.lab.clocks", str(self._file), module]


def follow(file: Path) -> None:
    """From now on this process' time of day is shifted by what the file says."""
    with file.open("rb") as shared:
        shift = mmap.mmap(shared.fileno(), _NANOSECONDS.size, access=mmap.ACCESS_READ)
    machine_ns = time.time_ns

    def time_ns() -> int:
        (nanoseconds,) = _NANOSECONDS.unpack_from(shift)
        return machine_ns() + int(nanoseconds)

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


if __name__ == "__main__":
    follow(Path(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

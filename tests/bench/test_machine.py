"""What processes use, while they come and go."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from bench.machine import Processes
from demo.processes import ProcessFault

_BUSY = "(i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done); echo done; exec sleep 60"


def ended() -> psutil.Process:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        return psutil.Process(child.pid)


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process that had a busy child, which has ended."""
    with subprocess.Popen(["/bin/sh", "-c", _BUSY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        yield process
        process.kill()


def test_a_named_process_that_ended_is_said_by_its_name() -> None:
    pid = ended().pid
    with pytest.raises(ProcessFault, match=rf"dispatcher \(process {pid}\) ended while it was measured"):
        Processes({"dispatcher": [pid]})


def test_a_named_process_that_ends_between_two_readings_is_said_too(
    parent: subprocess.Popen[bytes],
) -> None:
    processes = Processes({"database": [parent.pid]})
    processes.usage()
    parent.kill()
    parent.wait()
    with pytest.raises(ProcessFault, match=rf"database \(process {parent.pid}\) ended"):
        processes.usage()


def test_a_child_that_ends_between_listing_and_reading_is_left_out(
    parent: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ended()
    monkeypatch.setattr(psutil.Process, "children", lambda _: [gone])
    assert Processes({"database": [parent.pid]}).usage().resident_bytes["database"] > 0


def test_what_ended_children_used_counts_for_a_family(parent: subprocess.Popen[bytes]) -> None:
    alone = Processes({"sessions": [parent.pid]}).usage().cpu_seconds["sessions"]
    assert Processes({"database": [parent.pid]}).usage().cpu_seconds["database"] > alone

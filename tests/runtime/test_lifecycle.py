"""What a process gives itself before it starts, and how it is told to stop."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PROGRAM = """
import resource
from services.runtime.lifecycle import run_process

async def main(stop):
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
run_process("program", main)
"""

COLLECTING = """
import gc, json
import services.connector.app
from services.runtime.lifecycle import run_process

async def main(stop):
    looked_at = len(gc.get_objects())
    imported = gc.get_freeze_count()
    class Cycle: pass
    cycle = Cycle()
    cycle.itself = cycle
    del cycle
    print(json.dumps([looked_at, imported, gc.collect()]))

run_process("program", main)
"""


def test_a_process_takes_all_descriptors_that_it_may_have() -> None:
    """Container runtimes start processes with a soft limit below a connector's links."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.split() == ["4096", "4096"]


def test_a_collection_looks_at_nothing_that_was_imported() -> None:
    """A hundred thousand objects: 70 ms in which nothing else is done. What is made later is found."""
    ended = subprocess.run(
        [sys.executable, "-c", COLLECTING], capture_output=True, text=True, check=True, timeout=60
    )
    looked_at, imported, found = json.loads(ended.stdout)
    assert looked_at < 10_000 < imported
    assert found > 0


STOPPING = """
import asyncio, sys
from services.runtime.lifecycle import run_process

async def main(stop):
    print("serving", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    print("stopped", flush=True)

run_process("program", main)
"""


@contextmanager
def serving(on_hangup: str = "SIG_DFL") -> Iterator[subprocess.Popen[str]]:
    """A process that serves until it is told to stop, and has stopped once it reads a line. `on_hangup`: how
    it was started, since whoever started the tests may have it ignored."""
    started = f"import signal; signal.signal(signal.SIGHUP, signal.{on_hangup})"
    with subprocess.Popen(
        [sys.executable, "-c", started + STOPPING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_makes_it_stop_in_order(number: signal.Signals) -> None:
    with serving() as process:
        process.send_signal(number)
        assert process.communicate("\n", timeout=60)[0] == "stopping\nstopped\n"
        assert process.returncode == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(second: signal.Signals) -> None:
    with serving() as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(second)
        # The thread that reads is let go before the loop ends; it gets its line only then.
        assert process.communicate("\n", timeout=60)[0] == ""
        assert process.returncode == 130


def test_a_hangup_behind_another_signal_does_not_hurry_it() -> None:
    """Service managers send SIGHUP right behind SIGTERM; terminals send it more than once."""
    with serving() as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        assert process.communicate("\n", timeout=60)[0] == "stopped\n"
        assert process.returncode == 0


def test_a_hangup_that_whoever_started_it_ignores_stays_ignored() -> None:
    """As nohup does."""
    with serving("SIG_IGN") as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.communicate("\n", timeout=60)[0] == "stopping\nstopped\n"


CLOSED = """
import os, tempfile
from services.runtime.lifecycle import run_process
from services.runtime.logs import configure_logs

configure_logs("service", "one", "info", "auto")

async def main(stop):
    with tempfile.TemporaryFile() as held:
        os.write(1, f"{held.fileno()}".encode())

run_process("program", main)
"""


def test_a_closed_standard_error_stays_free_of_files_and_links() -> None:
    """What libraries write there would go into them."""
    ended = subprocess.run(
        [sys.executable, "-c", CLOSED],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: os.close(2),
        check=True,
        timeout=60,
    )
    assert int(ended.stdout) > 2

"""What a process gives itself before it starts."""

import json
import subprocess
import sys

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

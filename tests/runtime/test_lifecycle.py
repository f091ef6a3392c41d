"""What a process gives itself before it starts."""

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


def test_a_process_takes_all_descriptors_that_it_may_have() -> None:
    """Container runtimes start processes with a soft limit below a connector's links."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.split() == ["4096", "4096"]

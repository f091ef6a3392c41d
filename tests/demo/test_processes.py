"""Children with an owner."""

import asyncio
import socket
from pathlib import Path

import pytest

from demo.ports import HubPorts, choose_ports
from demo.processes import Child, ProcessFault

_WAITS = "import sys; sys.stdin.read()"
_DEAF = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
sys.stdin.read()
"""
_DIES = "import sys; sys.exit('cannot find the disk')"


async def _start(tmp_path: Path, program: str) -> Child:
    return await Child.start("worker", ["-c", program], tmp_path / "logs" / "worker.log", piped=True)


async def test_a_death_is_told_with_the_last_lines_of_the_log(tmp_path: Path) -> None:
    child = await _start(tmp_path, _DIES)

    with pytest.raises(
        ProcessFault, match=r"worker ended with status 1, unasked\n(.|\n)*cannot find the disk"
    ):
        await child.died()


async def test_a_child_that_dies_before_it_is_ready_is_not_waited_for(tmp_path: Path) -> None:
    child = await _start(tmp_path, _DIES)

    async def never_ready() -> None:
        await asyncio.Event().wait()

    never = asyncio.create_task(never_ready())

    with pytest.raises(ProcessFault, match="cannot find the disk"):
        await child.within(60.0, never, "serving")

    assert never.cancelled()


async def test_a_child_that_is_asked_to_end_has_not_died(tmp_path: Path) -> None:
    child = await _start(tmp_path, _WAITS)
    watch = asyncio.create_task(child.died())

    await child.stop(10.0)

    await watch


async def test_a_deaf_child_is_killed_after_its_grace(tmp_path: Path) -> None:
    child = await _start(tmp_path, _DEAF)
    assert await child.stdout.readline() == b"up\n"

    assert not await child.stop(0.05)

    await child.died()


def test_taken_ports_are_replaced_and_free_ones_kept() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        [free] = choose_ports()
        wanted = HubPorts(*(port, *(getattr(free, name) for name in list(HubPorts.__dataclass_fields__)[1:])))

        [chosen] = choose_ports(1, wanted)

    assert chosen.sessions != port
    assert chosen.dispatcher == free.dispatcher
    assert len({getattr(chosen, name) for name in HubPorts.__dataclass_fields__}) == 11

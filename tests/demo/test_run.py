"""`make run` as people see it: its steps, the commands that it prints, and a node that was revoked."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.processes import ROOT, clean_environment
from tests.support.tools import program

pytestmark = [pytest.mark.e2e, pytest.mark.cookbook]

SECONDS = 120.0


class Demo:
    """A demo that runs; `lines` are those that were read."""

    def __init__(self, process: asyncio.subprocess.Process, environment: dict[str, str]) -> None:
        self._process = process
        self._environment = environment
        self.lines: list[str] = []

    async def until(self, text: str) -> None:
        """Reads on up to the line with that text."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SECONDS):
            while line := (await self._process.stdout.readline()).decode():
                self.lines.append(line.rstrip("\n"))
                if text in line:
                    return
        pytest.fail(f"ended without {text!r}:\n" + "\n".join(self.lines))

    def printed_after(self, text: str) -> list[str]:
        """The commands below a line."""
        at = next(number for number, line in enumerate(self.lines) if text in line) + 1
        found = []
        while self.lines[at].startswith("  "):
            found.append(self.lines[at].strip())
            at += 1
        return found

    async def type(self, command: str) -> str:
        """Types a line at a shell in the folder of the repository; it has to end well."""
        process = await asyncio.create_subprocess_exec(
            *("bash", "-o", "pipefail", "-c", command),
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(SECONDS):
            out, _ = await process.communicate()
        assert process.returncode == 0, f"$ {command}\n{out.decode()}"
        return out.decode()

    async def stop(self) -> None:
        """Ctrl-C, and its verdict."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
        async with asyncio.timeout(SECONDS):
            out, _ = await self._process.communicate()
        self.lines += out.decode().splitlines()


@asynccontextmanager
async def running(folder: Path, *flags: str) -> AsyncIterator[Demo]:
    """Three nodes and a whole network."""
    tools = program("grpcurl", "grpcurl").parent
    path = os.pathsep.join((str(Path(sys.executable).parent), str(tools), os.environ["PATH"]))
    environment = {**clean_environment(), "PATH": path, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "demo", "--data", str(folder), "--nodes", "3", "--cut-every", "0", *flags),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    demo = Demo(process, environment)
    try:
        yield demo
    finally:
        await demo.stop()


async def test_what_is_printed_works_as_it_stands_and_a_revoked_node_is_named_at_the_next_start(
    tmp_path: Path,
) -> None:
    """With TLS and a folder that a shell would take for two."""
    folder = tmp_path / "a folder"
    async with running(folder, "--tls") as demo:
        await demo.until("manifests published")
        for step in ("sessions-1 serves at", "dispatcher-1 serves at", "connector-1 serves at"):
            assert any(step in line for line in demo.lines), step
        commands = demo.printed_after("try:")
        assert len(commands) == 6
        for command in commands:
            await demo.type(command)
        ctl = commands[0].removesuffix(" nodes")
        await demo.type(f"{ctl} revoke-node edge-1 --yes")
        async with asyncio.timeout(SECONDS):
            # The dispatcher that has it ends it.
            while "closed (revoked)" not in await demo.type(f"{ctl} session edge-1"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    assert demo.lines[-1].endswith("lost=0"), demo.lines

    async with running(folder, "--tls") as again:
        await again.until("edge nodes connected")
        assert "2 edge nodes connected" in again.lines[-1]
        (command,) = again.printed_after("edge-1 was revoked: it cannot connect")
        await again.until("manifests published to 2 nodes")
        assert "good again" in await again.type(command)
    assert again.lines[-1].endswith("lost=0"), again.lines

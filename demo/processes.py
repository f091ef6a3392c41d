"""Child processes with an owner: started with a log file, watched, stopped in order."""

import asyncio
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Launch = Callable[[str], list[str]]
"""What the interpreter is told to run a process, by its name."""

LAST_LINES = 15
_PR_SET_PDEATHSIG = 1


class ProcessFault(Exception):
    """A child died, or did not come up; the text says which and ends with the last lines of its log."""


def _end_with_parent() -> Callable[[], None] | None:
    """On Linux: have the kernel stop a child whose parent was killed, so that nothing is left behind."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """One running child process. `stop` must be awaited by whoever started it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process = process
        self._stopping = False

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        log_path: Path,
        *,
        piped: bool = False,
        append: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> "Child":
        """Runs `python arguments`; stderr (and stdout, unless `piped`) goes to the log, a new one unless
        `append`. `environment` is what it has beside ours."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        pipe = asyncio.subprocess.PIPE
        with log_path.open("ab" if append else "wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=pipe if piped else asyncio.subprocess.DEVNULL,
                stdout=pipe if piped else log,
                stderr=log,
                # A Ctrl-C at the terminal goes to the group in front: children are stopped by us, in order.
                start_new_session=True,
                preexec_fn=_end_with_parent(),
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                limit=4 * 1024 * 1024,
            )
        return cls(name, process, log_path)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def stdin(self) -> asyncio.StreamWriter:
        """Of a child that was started `piped`."""
        assert self._process.stdin is not None, "the child was not started piped"
        return self._process.stdin

    @property
    def stdout(self) -> asyncio.StreamReader:
        """Of a child that was started `piped`."""
        assert self._process.stdout is not None, "the child was not started piped"
        return self._process.stdout

    async def died(self) -> None:
        """Raises ProcessFault when the process ends without having been asked to."""
        status = await self._process.wait()
        if not self._stopping:
            raise ProcessFault(self._describe_end(status))

    async def succeeded(self) -> None:
        """Returns when the process has ended by itself; raises ProcessFault unless with status 0."""
        status = await self._process.wait()
        if status:
            raise ProcessFault(self._describe_end(status))

    async def within(self, seconds: float, ready: asyncio.Task[None], what: str) -> None:
        """Waits for `ready`; raises ProcessFault if the child dies first or the time passes."""
        death = asyncio.create_task(self._process.wait(), name=f"end of {self.name}")
        try:
            await asyncio.wait({ready, death}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
            elif death.done():
                raise ProcessFault(self._describe_end(death.result()))
            else:
                raise ProcessFault(f"{self.name} was not {what} within {seconds:g} s\n{self._last_lines()}")
        finally:
            for task in (ready, death):
                task.cancel()
            await asyncio.gather(ready, death, return_exceptions=True)

    @property
    def running(self) -> bool:
        """Whether the process has not ended, as far as we have been told."""
        return self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing if the process has ended."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """kill -9, and waits for the end."""
        self._stopping = True
        self.signal(signal.SIGKILL)
        await self._process.wait()

    async def stop(self, grace_seconds: float) -> bool:
        """SIGTERM, and SIGKILL after the grace; whether the process ended by itself with status 0."""
        self._stopping = True
        if self._process.returncode is None:
            try:
                self._process.terminate()
            except ProcessLookupError:
                pass
        try:
            async with asyncio.timeout(grace_seconds):
                return await self._process.wait() == 0
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            return False

    def _describe_end(self, status: int) -> str:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{self.name} {how}, unasked\n{self._last_lines()}"

    def _last_lines(self) -> str:
        with self.log_path.open(errors="replace") as log:
            lines = deque(log, maxlen=LAST_LINES)
        body = "".join(f"  | {line}" for line in lines).rstrip() or "  | (empty)"
        return f"last lines of {self.log_path}:\n{body}"

"""Programs of others that tests run: those of `scripts/get_tools.py`."""

import asyncio
import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.get_tools import path_of

STOP_SECONDS = 15.0


def program(tool: str, name: str) -> Path:
    """A program of a tool. Where it is not there the test is skipped, in CI it fails."""
    found = path_of(tool) / name
    if not found.exists():
        text = f"{name} is not here; get it by `python -m scripts.get_tools {tool}`"
        if "CI" not in os.environ:
            pytest.skip(text)
        pytest.fail(text)
    return found


def fetch(url: str, posted: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of a GET, or of a POST of that JSON; status 0 where nobody answers."""
    request = urllib.request.Request(url, posted, {"Content-Type": "application/json"} if posted else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0, b""


def answers(url: str) -> Callable[[], bool]:
    """Whether a GET has success."""
    return lambda: fetch(url)[0] == 200


async def ask(url: str) -> Any:
    """The JSON that a GET answers. Raises AssertionError with the answer where that is no success."""
    status, body = await asyncio.to_thread(fetch, url)
    assert status == 200, f"{url}: {status} {body.decode(errors='replace')[:500]}"
    return json.loads(body)


@asynccontextmanager
async def running(
    command: Sequence[str | Path],
    log: Path,
    ready: Callable[[], bool],
    *,
    environment: Mapping[str, str] | None = None,
    seconds: float = 60.0,
) -> AsyncIterator[None]:
    """The program runs within the block, which begins when it is ready."""
    with log.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=sink, stderr=sink, cwd=log.parent, env={**os.environ, **(environment or {})}
        )
    try:
        try:
            async with asyncio.timeout(seconds):
                # Another's process can only be polled.
                while not await asyncio.to_thread(ready):
                    assert process.returncode is None, f"{command[0]} ended:\n{log.read_text()[-3000:]}"
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{command[0]} is not ready:\n{log.read_text()[-3000:]}") from None
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

"""A hub that is restored from backups goes on with what was pending."""

import asyncio
import subprocess
import sys
from pathlib import Path

from cloudhub.v1 import dispatcher_pb2 as pb
from tests.support.certs import TestAuthority
from tests.support.hub import request, running_hub

ACKNOWLEDGED = pb.DELIVERY_STATE_ACKNOWLEDGED


async def copied(word: str, service: str, file: Path, database: Path) -> None:
    command = (
        sys.executable,
        "-m",
        f"services.{service}",
        word,
        str(file),
        "--database",
        f"sqlite:///{database}",
    )
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr.decode()


async def test_a_restored_hub_delivers_what_was_pending(tmp_path: Path, authority: TestAuthority) -> None:
    """Taken while it serves. What was acknowledged before does not come again; what was published after the
    backup is gone, and its publisher publishes it anew."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    services = ("dispatcher", "sessions")
    async with running_hub(first, authority) as hub:
        await hub.accept(request(name="settled"))
        async with hub.edge() as edge:
            await edge.answer(await edge.next())
            await hub.until_state("edge-1", "uid-settled", ACKNOWLEDGED)
        await hub.accept(request(name="waits", version=3))
        for service in services:
            await copied("backup", service, tmp_path / f"{service}.backup", first / f"{service}.db")
        await hub.accept(request(name="late"))
    for service in services:
        await copied("restore", service, tmp_path / f"{service}.backup", second / f"{service}.db")
    async with running_hub(second, authority) as hub, hub.edge() as edge:
        message = await edge.next()
        assert message["content"]["metadata"]["uid"] == "uid-waits"
        await edge.answer(message)
        await hub.until_state("edge-1", "uid-waits", ACKNOWLEDGED)
        await hub.accept(request(name="late"))
        assert (await edge.next())["content"]["metadata"]["uid"] == "uid-late"
        (again,) = await hub.publish(request(name="waits", version=2))
        assert again.reason == "BELOW_FLOOR", "floors are of the backup"

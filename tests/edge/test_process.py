"""The real `cloudhub-edge` process: killed, restarted, stopped."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge import __main__ as program
from edge.store import read_history, read_objects
from tests.support.cloud_side import CloudSide, answer_to, object_message

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.e2e


@asynccontextmanager
async def edge_process(*arguments: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running agent; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "edge",
        *(str(argument) for argument in arguments),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def arguments(cloud: CloudSide, certificates: Path, database: Path) -> list[str | Path]:
    return [
        *("--server", cloud.url, "--ca", certificates / "ca.crt", "--certificates", certificates),
        *("--database", database, "--node", "edge-1", "--first-delay", "0.05", "--most-delay", "0.2"),
    ]


async def test_what_was_acknowledged_survives_kill_9_and_uploads_are_repeated(
    cloud: CloudSide, certificates: Path, tmp_path: Path
) -> None:
    """C12 and C31, seen from the edge."""
    database = tmp_path / "edge.db"
    sent: dict[str, dict[str, Any]] = {}
    acknowledged: set[str] = set()
    async with edge_process(*arguments(cloud, certificates, database), "--upload-every", "0.05") as process:
        link = await cloud.link()
        uploads: list[dict[str, Any]] = []
        for number in range(200):
            message = object_message(f"default/configmap/c{number}", version=str(number))
            sent[message["header"]["msg_id"]] = message
            await link.send(message)
        while len(acknowledged) < 100 or len(uploads) < 2:
            received = await link.next()
            if received["route"]["operation"] == "response":
                acknowledged.add(received["header"]["parent_msg_id"])
            else:
                uploads.append(received)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await link.ended.wait()
        while not link.received.empty():
            received = link.received.get_nowait()
            if received["route"]["operation"] == "response":
                acknowledged.add(received["header"]["parent_msg_id"])
    held = {row.resource: row.version for row in read_objects(database)}
    applied = {row.msg_id for row in read_history(database)}
    assert acknowledged <= applied
    for msg_id in acknowledged:
        message = sent[msg_id]
        assert held[message["route"]["resource"]] == message["header"]["resourceversion"]

    async with edge_process(*arguments(cloud, certificates, database)) as process:
        link = await cloud.link()
        repeated = [await link.next() for _ in uploads]
        assert [one["header"]["msg_id"] for one in repeated] == [one["header"]["msg_id"] for one in uploads]
        assert [one["content"]["number"] for one in repeated] == list(range(1, len(uploads) + 1))
        for one in repeated:
            await link.send(answer_to(one))
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_cleanly_and_it_says_what_was_done(
    cloud: CloudSide, certificates: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command: list[str | Path] = [
        *arguments(cloud, certificates, tmp_path / "edge.db"),
        "--status-every",
        "0.05",
        "--no-history",
    ]
    async with edge_process(*command, "--nodes", "2", "--log-format", "json") as process:
        links = [await cloud.link(), await cloud.link()]
        assert {link.node_id for link in links} == {"edge-1", "edge-2"}
        report = await links[0].next()
        assert report["route"]["resource"] == f"default/podstatus/{links[0].node_id}-pod"
        process.send_signal(number)
        _, errors = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0
    for link in links:
        await link.ended.wait()
        assert link.connection.close_code == 1001
    events = [json.loads(line) for line in errors.decode().splitlines()]
    assert [event["event"] for event in events] == [
        "edge.started",
        "link.opened",
        "link.opened",
        "edge.stopped",
    ]


async def test_one_node_with_files_of_its_own(cloud: CloudSide, certificates: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [
        *("--server", cloud.url, "--ca", certificates / "ca.crt", "--database", tmp_path / "edge.db"),
        *("--node", "edge-2", "--certificate", certificates / "nodes" / "edge-2.crt"),
        *("--key", certificates / "nodes" / "edge-2.key"),
    ]
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(edge_process(*command))
        assert (await cloud.link()).common_name == "system:node:edge-2"
        second = await stack.enter_async_context(edge_process(*command))
        _, errors = await asyncio.wait_for(second.communicate(), 10)
        assert second.returncode == 1
        assert b"in use by another edge agent" in errors
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no node named"),
        (["--nodes", "2", "--certificate", "x.crt"], "serves one node only"),
        (["--node", "edge-1"], "either a folder"),
    ],
)
def test_a_command_that_cannot_be_ends_with_one_sentence(
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["cloudhub-edge", "--server", "wss://hub:10000", "--ca", "ca.crt", *arguments]
    )
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 1
    errors = capsys.readouterr().err
    assert errors.startswith("cloudhub-edge: ")
    assert errors.count("\n") == 1
    assert says in errors

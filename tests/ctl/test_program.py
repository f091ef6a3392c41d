"""The real program against a real hub: answers, sentences and exit codes."""

import asyncio
import json
import os
import pty
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.processes import HOST, ROOT, HubProcesses, clean_environment

pytestmark = [pytest.mark.e2e, pytest.mark.cookbook, pytest.mark.asyncio(loop_scope="module")]

FAST = {"dispatcher": ["--ack-seconds", "0.2", "--ack-most-seconds", "0.3", "--most-attempts", "2"]}
SECONDS = 30.0
MANIFEST = "kind: ConfigMap\nmetadata: {name: prices, namespace: shop}\ndata: {milk: '1.29'}\n"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The answer of `-o json`."""
        return json.loads(self.out)


class Program:
    """Runs `cloudhubctl` against a hub."""

    def __init__(self, hub: HubProcesses, folder: Path) -> None:
        self.hub = hub
        self.folder = folder
        services = ("dispatcher", "sessions", "connector")
        self.environment = {
            **clean_environment(),
            **{f"CLOUDHUBCTL_{service.upper()}": hub.address(service) for service in services},
        }

    async def start(self, *arguments: str, stdin: int | None = None) -> asyncio.subprocess.Process:
        """A run that goes on."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ctl", *arguments),
            cwd=ROOT,
            env=self.environment,
            stdin=asyncio.subprocess.PIPE if stdin is None else stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str, typed: str = "") -> Ended:
        """A run that ends by itself."""
        process = await self.start(*arguments)
        try:
            async with asyncio.timeout(SECONDS):
                out, err = await process.communicate(typed.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())

    def file(self, name: str, text: str) -> str:
        """A file with that text."""
        path = self.folder / name
        path.write_text(text)
        return str(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def program(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Program]:
    """A hub with edge-1 and edge-2."""
    folder = tmp_path_factory.mktemp("ctl")
    async with HubProcesses(folder, FAST) as hub:
        await hub.start_edges(["edge-1", "edge-2"])
        running = Program(hub, folder)
        async with asyncio.timeout(SECONDS):
            while len((await running.run("sessions", "-o", "json")).json) < 2:  # noqa: ASYNC110 - processes
                await asyncio.sleep(0.05)
            # A connector is listed from the next renewal of its dispatcher's lease on.
            while "connector-1" not in (await running.run("instances", "-o", "json")).out:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield running


async def test_a_manifest_is_published_and_waited_for(program: Program) -> None:
    file = program.file("prices.yaml", MANIFEST)

    done = await program.run("publish", "-f", file, "-n", "edge-1", "-n", "edge-2", "--wait", "-o", "json")

    assert (done.code, done.err) == (0, "")
    assert {(one["node_id"], one["outcome"], one["state"]) for one in done.json} == {
        ("edge-1", "accepted", "acknowledged"),
        ("edge-2", "accepted", "acknowledged"),
    }
    told = await program.run("explain", "edge-1", "shop/configmap/prices", "-o", "json")
    assert told.json["message_id"] == done.json[0]["message_id"]
    assert told.json["object"]["acknowledged_version"] == done.json[0]["version"]
    deleted = await program.run("publish", "-f", "-", "-n", "edge-1", "--delete", "--wait", typed=MANIFEST)
    assert (deleted.code, deleted.out) == (0, "1 object to 1 node: 1 accepted, 1 acknowledged\n")
    gone = await program.run("explain", "edge-1", "shop/configmap/prices", "-o", "json")
    assert gone.json["object"]["deleted"]


async def test_a_node_that_is_away_ends_the_wait_in_time(program: Program) -> None:
    file = program.file("away.yaml", MANIFEST)

    done = await program.run(
        *("publish", "-f", file, "-n", "edge-7", "--unknown"), "--wait", "--wait-seconds", "0.3"
    )

    assert done.code == 5
    assert "edge-7  shop/configmap/prices  pending  Pending: the node is not connected" in done.out
    lagging = await program.run("nodes", "--prefix", "edge-7", "--older-than", "0.001", "-o", "json")
    assert [(one["node_id"], one["state"], one["pending"]) for one in lagging.json] == [("edge-7", "away", 1)]
    waiting = await program.run("inspect", "edge-7", "-o", "json")
    assert [one["object_key"] for one in waiting.json["objects"]] == ["shop/configmap/prices"]
    purged = await program.run("purge", "edge-7", "--all", "--yes")
    assert (purged.code, purged.out) == (0, "1 pending message of edge-7 dropped\n")


async def test_an_object_is_found_on_all_nodes_and_all_of_a_node_is_listed(program: Program) -> None:
    file = program.file("spread.yaml", MANIFEST.replace("prices", "spread"))
    await program.run("publish", "-f", file, "-n", "edge-1", "-n", "edge-2", "--version", "7", "--wait")
    await program.run("publish", "-f", file, "-n", "edge-2", "--version", "8", "--wait")

    spread = await program.run("object", "shop/configmap/spread", "--prefix", "edge-")
    lacking = await program.run("object", "shop/configmap/spread", "--lacking", "-o", "json")
    held = await program.run("inspect", "edge-1", "--all", "-o", "json")
    nowhere = await program.run("object", "shop/configmap/nowhere")

    assert [line.split()[:2] for line in spread.out.splitlines()[1:3]] == [["edge-1", "7"], ["edge-2", "8"]]
    assert "version 8 is the newest: 1 of " in spread.err
    assert "edge-2" not in [one["node_id"] for one in lacking.json]
    assert "edge-1" in [one["node_id"] for one in lacking.json]
    (mine,) = (one for one in held.json["objects"] if one["resource"] == "shop/configmap/spread")
    assert (mine["acknowledged_version"], "acknowledged_at" in mine) == ("7", True)
    assert (nowhere.code, "no node has an object shop/configmap/nowhere" in nowhere.err) == (4, True)


async def test_an_older_version_is_told_with_its_node_and_fails(program: Program) -> None:
    file = program.file("old.yaml", MANIFEST.replace("prices", "old"))
    await program.run("publish", "-f", file, "-n", "edge-1", "--version", "9")

    done = await program.run("publish", "-f", file, "-n", "edge-1", "--version", "8")

    assert done.code == 1
    assert "stale" in done.out
    assert "BELOW_FLOOR: version 9 was accepted before" in done.out
    assert done.out.endswith("1 object to 1 node: 0 accepted\n")


async def test_what_is_there_is_listed(program: Program) -> None:
    nodes, sessions, links, limits = await asyncio.gather(
        program.run("nodes", "--prefix", "edge-1"),
        program.run("sessions", "-o", "json"),
        program.run("links", "-o", "json"),
        program.run("limits", "-o", "json"),
    )

    assert nodes.out.splitlines()[0].split()[:3] == ["NODE", "STATE", "PENDING"]
    assert nodes.out.splitlines()[1].split()[:2] == ["edge-1", "active"]
    assert [one["node_id"] for one in sessions.json] == ["edge-1", "edge-2"]
    assert {one["state"] for one in sessions.json} == {"SESSION_STATE_ACTIVE"}
    assert [one["node_id"] for one in links.json] == ["edge-1", "edge-2"]
    assert limits.json["nodes"] == 2


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.create_server((HOST, 0)) as listener:
        return f"{HOST}:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ("explain edge-1 nothing", 4, "node edge-1 has no object nothing"),
        ("evict edge-1 --epoch 12", 1, "`cloudhubctl session NODE` shows the live one"),
        ("inspect Edge_1", 2, "node_id: should be a node id"),
        ("drain connector-7 --yes", 4, "no connector connector-7 is attached; there is: connector-1"),
        ("publish -f examples/manifests --prefix shop-", 4, "the hub knows no such node"),
        ("publish -f examples/manifests -n Edge_1", 2, "node_ids: should be a node id"),
        ("publish -f examples/manifests -n Edge_1 --unknown", 1, "NODE_ID_MALFORMED"),
    ],
)
async def test_what_is_wrong_is_told_in_a_sentence_with_its_exit_code(
    program: Program, arguments: str, code: int, told: str
) -> None:
    ended = await program.run(*arguments.split())

    assert told in ended.out + ended.err
    assert ended.code == code
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        "publish -f examples/manifests -n edge-1 -n edge-99",
        "inspect edge-99",
        "explain edge-99 shop/configmap/prices",
        "redeliver edge-99",
        "purge edge-99 --all --yes",
        "resync edge-99",
        "session edge-99",
        "evict edge-99",
        "delete-node edge-99 --yes",
        "revoke-node edge-99 --yes",
        "reinstate-node edge-99",
    ],
)
async def test_a_misspelt_node_is_told_and_nothing_is_done(program: Program, arguments: str) -> None:
    """C41: an id that the hub does not know is no success that does nothing, and leaves nothing."""
    ended = await program.run(*arguments.split())

    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("cloudhubctl: the hub knows no node edge-99")
    assert (await program.run("nodes", "--prefix", "edge-99", "-o", "json")).json == []


async def test_whoever_means_a_node_that_never_was_here_says_so(program: Program) -> None:
    file = program.file("early.yaml", MANIFEST.replace("prices", "early"))

    published = await program.run("publish", "-f", file, "-n", "early-1", "--unknown")
    revoked = await program.run("revoke-node", "early-2", "--yes", "--unknown")
    deleted = await program.run("delete-node", "early-3", "--yes", "--unknown")

    assert published.out == "1 object to 1 node: 1 accepted\n"
    assert revoked.out == "the certificates of early-2 are refused; it was not connected\n"
    assert (deleted.code, deleted.err) == (0, "")
    # It is known now, though it never had a session.
    session = await program.run("session", "early-1")
    assert (session.code, "node early-1 never had a session" in session.err) == (4, True)
    assert (await program.run("reinstate-node", "early-2")).code == 0
    assert (await program.run("delete-node", "early-1", "--yes")).code == 0


async def test_a_service_that_is_not_there_is_named_with_what_to_try(program: Program) -> None:
    address = closed_port()

    nobody = await program.run("--dispatcher", address, "nodes")
    another = await program.run("--sessions", program.hub.address("dispatcher"), "sessions")

    assert nobody.code == 3
    assert f"dispatcher at {address} cannot be reached (Connection refused)" in nobody.err
    assert "--dispatcher or CLOUDHUBCTL_DISPATCHER" in nobody.err
    assert another.code == 2
    assert "is no sessions of a hub" in another.err


async def test_a_service_that_is_silent_costs_no_more_than_the_timeout(program: Program) -> None:
    with socket.create_server((HOST, 0)) as silent:
        address = f"{HOST}:{silent.getsockname()[1]}"
        ended = await program.run("--sessions", address, "--timeout", "0.3", "instances")

    assert ended.code == 3
    assert f"sessions at {address} did not answer within 0.3 s" in ended.err


async def test_nodes_are_listed_though_sessions_is_away(program: Program) -> None:
    ended = await program.run("--sessions", closed_port(), "nodes", "--prefix", "edge-1", "-o", "json")

    assert ended.code == 0
    assert "sessions at" in ended.err
    assert [(one["node_id"], one["state"]) for one in ended.json] == [("edge-1", "active")]


async def test_a_watch_tells_changes_and_ends_cleanly_at_ctrl_c(program: Program) -> None:
    process = await program.start("watch", "--prefix", "edge-2", "--present", "-o", "json")
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        first = json.loads(await process.stdout.readline())
        evicted = await program.run("evict", "edge-2")
        states: list[str] = []
        while states[-1:] != ["SESSION_STATE_ACTIVE"]:
            states.append(json.loads(await process.stdout.readline())["state"])
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()

    assert (process.returncode, out, err) == (0, b"", b"")
    assert evicted.out == f"the session of edge-2 with epoch {first['epoch']} is draining\n"
    assert "SESSION_STATE_CLOSED" in states


async def test_ctrl_c_in_long_work_says_that_the_hub_goes_on(program: Program) -> None:
    file = program.file("long.yaml", MANIFEST.replace("prices", "long"))
    process = await program.start("publish", "-f", file, "-n", "edge-7", "--unknown", "--wait")
    async with asyncio.timeout(SECONDS):
        while (await program.run("explain", "edge-7", "shop/configmap/long")).code:  # noqa: ASYNC110 - processes
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()

    assert process.returncode == 130
    assert err == b"cloudhubctl: interrupted; what the hub was asked already goes on\n"
    assert out == b""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_watch_says_that_sessions_has_gone(program: Program, number: signal.Signals) -> None:
    process = await program.start("watch", "--present", "-o", "json")
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        await process.stdout.readline()
        program.hub.signal("sessions", number)
        _, err = await process.communicate()
        await program.hub.ended("sessions")
    await program.hub.start("sessions")

    told = f"sessions at {program.hub.address('sessions')} was stopped or lost; ask it anew"
    fault = {"code": "UNAVAILABLE", "reason": "", "message": told, "exit_code": 3}
    assert (process.returncode, json.loads(err)) == (3, {"error": fault})


async def test_a_wait_outlives_a_dispatcher(program: Program) -> None:
    file = program.file("outage.yaml", MANIFEST.replace("prices", "outage"))
    process = await program.start(
        *("publish", "-f", file, "-n", "edge-8", "--unknown"), "--wait", "--wait-seconds", "20"
    )
    async with asyncio.timeout(SECONDS):
        while (await program.run("explain", "edge-8", "shop/configmap/outage")).code:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await program.hub.kill("dispatcher")
        await program.hub.start("dispatcher")
        purged = await program.run("purge", "edge-8", "--all", "--yes")
        out, err = await process.communicate()

    assert (purged.code, purged.out) == (0, "1 pending message of edge-8 dropped\n")
    assert (process.returncode, err) == (1, b"")
    assert b"It ended without an acknowledgement: purged" in out


async def test_a_reader_that_leaves_is_no_fault(program: Program) -> None:
    process = await program.start("watch", "--present", "-o", "json")
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        await process.stdout.readline()
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined] # asyncio offers no other way
        await program.run("evict", "edge-2")
        assert process.stderr is not None
        err = await process.stderr.read()
        await process.wait()

    assert (process.returncode, err) == (141, b"")


async def test_who_sits_at_a_terminal_is_asked(program: Program) -> None:
    ours, theirs = pty.openpty()
    try:
        process = await program.start("purge", "edge-1", "--all", stdin=theirs)
        os.write(ours, b"n\n")
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    finally:
        os.close(ours)
        os.close(theirs)

    assert process.returncode == 1
    assert b"Drop everything that waits for edge-1?" in err
    assert b"nothing was done" in err
    assert out == b""


async def test_the_shell_completes_node_ids(program: Program) -> None:
    asked = {"_CLOUDHUBCTL_COMPLETE": "complete_bash", "COMP_CWORD": "2"}

    async def offered(words: str, **changes: str) -> list[str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "import sys; from ctl.__main__ import main; sys.argv[0] = 'x'; main()"),
            cwd=ROOT,
            env={**program.environment, **asked, "COMP_WORDS": words, **changes},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), SECONDS)
        return out.decode().split()

    assert await offered("cloudhubctl session edge-1") == ["edge-1"]
    assert await offered("cloudhubctl session edge-", CLOUDHUBCTL_DISPATCHER=closed_port()) == []


async def test_work_on_many_nodes_shows_a_bar_at_a_terminal(program: Program) -> None:
    ours, theirs = pty.openpty()
    file = program.file("bar.yaml", MANIFEST.replace("prices", "bar"))
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ctl", "publish", "-f", file, "-n", "edge-1", "-n", "edge-2"),
            cwd=ROOT,
            env=program.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=theirs,
        )
        out, _ = await asyncio.wait_for(process.communicate(), SECONDS)
        shown = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)

    assert b"published" in shown
    assert b"2/2" in shown
    assert out == b"1 object to 2 nodes: 2 accepted\n"

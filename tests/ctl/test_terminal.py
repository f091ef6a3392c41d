"""Commands as people type them: at a terminal of 80 columns, at a hub with and without TLS, with one of the
dispatchers dead."""

import asyncio
import fcntl
import json
import os
import pty
import re
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.fleet import running_fleet
from demo.hub import PROGRAM, Hub, running_hub
from demo.ports import HOST, choose_ports
from edge.certificates import create_node_certificates, create_server_certificate
from tests.support.processes import ROOT, clean_environment

pytestmark = [pytest.mark.e2e, pytest.mark.cookbook]

SECONDS = 60.0
COLUMNS = 80
PATH = "retail/configmap/price-list-of-the-week"
MANIFEST = (
    "kind: ConfigMap\nmetadata: {name: price-list-of-the-week, namespace: retail}\ndata: {milk: '1.29'}\n"
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Each with what stands in its answer, whole.
TYPED = (
    ("publish -f manifest.yaml -n edge-1 -n edge-2 --wait", "2 accepted, 2 acknowledged"),
    ("publish -f manifest.yaml -n edge-9 --unknown", "1 accepted"),
    ("nodes", "edge-9"),
    ("nodes --wide", "LAST ACK"),
    ("inspect edge-9", PATH),
    ("inspect edge-1 --all", PATH),
    (f"object {PATH}", "edge-2"),
    (f"object {PATH} --lacking", "edge-9"),
    (f"explain edge-1 {PATH}", PATH),
    (f"explain edge-9 {PATH}", "accepted"),
    ("sessions", "edge-1"),
    ("session edge-2", "active"),
    ("links connector-1", "edge-2"),
    ("instances", "enrolment-1"),
    ("instances --wide", "ADDRESS"),
    ("limits", "each connector"),
    ("token create --nodes edge-* --uses 3", "."),
    ("token list", "3 of 3"),
    ("revoke-node edge-9 --yes --unknown", "it was not connected"),
    ("revoked-nodes", "locked out"),
    ("reinstate-node edge-9", "good again"),
    ("redeliver edge-1", "0 parked messages"),
    (f"purge edge-9 {PATH} --yes", "1 pending message"),
    ("resync edge-2", "1 object"),
    ("evict edge-2", "edge-2"),
    ("delete-node edge-9 --yes", "is deleted"),
)


def closed_address() -> str:
    """An address where nobody listens."""
    with socket.create_server((HOST, 0)) as listener:
        return f"{HOST}:{listener.getsockname()[1]}"


@dataclass(frozen=True, slots=True)
class Screen:
    """What a command wrote, and how it ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Terminal:
    """Somebody who sits at a terminal, in a folder with a manifest."""

    folder: Path
    environment: dict[str, str]

    async def type(self, text: str) -> Screen:
        """Runs a command; its answer goes to a terminal of 80 columns, what is said beside it to a pipe."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        loop, shown = asyncio.get_running_loop(), bytearray()
        ended = asyncio.Event()

        def read() -> None:
            try:
                shown.extend(os.read(ours, 65536))
            except OSError:
                # The last one who could write has gone.
                loop.remove_reader(ours)
                ended.set()

        loop.add_reader(ours, read)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ctl", *text.split()),
                cwd=self.folder,
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                stderr=asyncio.subprocess.PIPE,
            )
            os.close(theirs)
            async with asyncio.timeout(SECONDS):
                _, err = await process.communicate()
                await ended.wait()
        finally:
            loop.remove_reader(ours)
            os.close(ours)
        assert process.returncode is not None
        return Screen(process.returncode, _COLOURS.sub("", shown.decode().replace("\r", "")), err.decode())


def _environment(hub: Hub, certificates: Path, *, tls: bool, more_dispatchers: str) -> dict[str, str]:
    found = {
        **{name: value for name, value in clean_environment().items() if name not in ("COLUMNS", "LINES")},
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
        "CLOUDHUBCTL_DISPATCHER": hub.dispatcher_addresses + more_dispatchers,
        "CLOUDHUBCTL_SESSIONS": hub.sessions[0].address,
        "CLOUDHUBCTL_CONNECTOR": hub.connectors[0].address,
    }
    if tls:
        own = certificates / "programs" / PROGRAM
        found["CLOUDHUBCTL_CA"] = str(certificates / "ca.crt")
        found["CLOUDHUBCTL_CERT"], found["CLOUDHUBCTL_KEY"] = f"{own}.crt", f"{own}.key"
    return found


@asynccontextmanager
async def terminal_at(folder: Path, *, tls: bool, dead: bool) -> AsyncIterator[Terminal]:
    """At a hub with edge-1 and edge-2."""
    certificates = folder / "certificates"
    create_server_certificate(certificates)
    create_node_certificates(certificates, ["edge-1", "edge-2"])
    (folder / "manifest.yaml").write_text(MANIFEST)
    async with (
        running_hub(folder, certificates, choose_ports(), tls=tls, enrolments=1) as hub,
        running_fleet(2, hub.server, certificates, folder / "edges.db", folder / "edges.log") as fleet,
    ):
        await fleet.connected(SECONDS)
        more = f",{closed_address()}" if dead else ""
        terminal = Terminal(folder, _environment(hub, certificates, tls=tls, more_dispatchers=more))
        async with asyncio.timeout(SECONDS):
            # A connector is listed from the next renewal of its dispatcher's lease on.
            while "connector-1" not in (await terminal.type("instances -o json")).out:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        yield terminal


@pytest.mark.parametrize(("tls", "dead"), [(False, False), (True, True)])
async def test_commands_answer_in_lines_that_fit_and_break_no_id(
    tls: bool, dead: bool, tmp_path: Path
) -> None:
    async with terminal_at(tmp_path, tls=tls, dead=dead) as terminal:
        for text, told in TYPED:
            screen = await terminal.type(text)
            assert screen.code == 0, (text, screen)
            assert told in screen.out, (text, screen.out)
            if not any(word in text for word in ("--wide", "token create", "explain")):
                assert max(map(len, screen.out.splitlines())) <= COLUMNS, (text, screen.out)
            # Beside the answer stands which columns are left out, and who is dead.
            beside = [line for line in screen.err.splitlines() if not line.startswith("left out: ")]
            assert not any("cannot be reached" in line for line in beside) or dead, (text, beside)
        error = json.loads((await terminal.type("inspect egde-1 -o json")).err.splitlines()[-1])["error"]
        assert (error["code"], error["reason"], error["exit_code"]) == ("NOT_FOUND", "NODE_UNKNOWN", 4)
        narrow, wide = [(await terminal.type(f"sessions{more}")).out for more in ("", " --wide")]
        assert "EPOCH" not in narrow.splitlines()[0]
        assert "EPOCH" in wide.splitlines()[0]
        warned = (await terminal.type("nodes")).err
        assert ("cannot be reached" in warned) == dead

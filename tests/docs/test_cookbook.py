"""Every command that a document shows, run as written against a hub in the state that it describes, answers
what the document shows."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from demo.hub import running_hub
from demo.ports import choose_ports
from edge.certificates import create_program_certificate, create_server_certificate
from tests.docs.cookbook import Command, commands_of, same, varying_of
from tests.docs.test_documents import DOCUMENTS, OPERATIONS, ROOT, cookbook_pages
from tests.support.processes import HubProcesses, clean_environment
from tests.support.tools import program

pytestmark = [pytest.mark.e2e, pytest.mark.cookbook]

SHOWING = [document for document in DOCUMENTS if commands_of(document.read_text())]
# What is typed at one hub: the pages of the cookbook go on where the one before ended.
SITTINGS = [cookbook_pages(), *([page] for page in SHOWING if page not in cookbook_pages())]
PORTS = {50051: "dispatcher", 50052: "sessions", 50053: "connector"}
# Commands for a hub with TLS, at the address and with the certificates of the documents.
TLS = "hub.example.com"
# Messages that nobody acknowledges are parked within a second.
FLAGS = {
    "dispatcher": [
        *("--ack-seconds", "0.2", "--ack-most-seconds", "0.3", "--most-attempts", "3"),
        *("--edge-acknowledgements", "all"),
    ]
}
# Commands that change nothing are asked again until what they show has come about.
READS = re.compile(
    r"/(?:List|Get(?!Resources)|Inspect|Explain|Check)\w*\s*$|"
    r"cloudhubctl (?:nodes|inspect|sessions|session|links|instances|explain|object)\b"
)
ANSWER_SECONDS = 20.0

sittings = pytest.mark.parametrize("pages", SITTINGS, ids=lambda pages: str(pages[0].relative_to(ROOT)))


def programs() -> str:
    """PATH with what documents run."""
    grpcurl = program("grpcurl", "grpcurl").parent
    return os.pathsep.join((str(Path(sys.executable).parent), str(grpcurl), os.environ["PATH"]))


class Terminal:
    """Runs commands as somebody would who sits at the hub; only its addresses are mapped."""

    def __init__(self, addresses: Mapping[str, str], path: str, folder: Path = ROOT) -> None:
        self._addresses = {f"127.0.0.1:{port}": addresses[service] for port, service in PORTS.items()}
        self._tls = {f"hub.example.com:{port}": addresses[service] for port, service in PORTS.items()}
        self._folder = folder
        self._environment = {
            **clean_environment(),
            **{f"CLOUDHUBCTL_{service.upper()}": address for service, address in addresses.items()},
            "PATH": path,
            "COLUMNS": "110",
        }

    async def start(self, text: str) -> asyncio.subprocess.Process:
        """A command in a process group of its own, its input open, stderr where stdout goes."""
        for shown, real in self._addresses.items():
            text = text.replace(shown, real)
        for shown, real in self._tls.items():
            # As through a tunnel: the certificate does not name this address.
            tunnel = "-authority service.cloudhub.internal " if text.startswith("grpcurl") else ""
            text = text.replace(shown, tunnel + real)
        return await asyncio.create_subprocess_exec(
            *("bash", "-o", "pipefail", "-c", text),
            cwd=self._folder,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def run(self, text: str) -> tuple[int, str]:
        """Status and answer of a command that ends."""
        process = await self.start(text)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                written, _ = await process.communicate()
        except TimeoutError:
            interrupt(process, signal.SIGKILL)
            written, _ = await process.communicate()
            pytest.fail(f"{text}\ndid not end; it wrote:\n{written.decode()}")
        assert process.returncode is not None
        return process.returncode, written.decode()


def interrupt(process: asyncio.subprocess.Process, number: signal.Signals = signal.SIGINT) -> None:
    """Ctrl-C, as a terminal tells it: to all that the command started."""
    os.killpg(process.pid, number)


def fails(command: Command) -> bool:
    """Whether the answer shown is an error, and the command ends with it."""
    return "; echo " not in command.text and command.answer.lstrip().startswith(("ERROR:", "cloudhubctl: "))


def told(document: Path, command: Command, real: str, status: int | None = None) -> str:
    """For people, who compare and mend."""
    ended = "" if status is None else f"\n(status {status})"
    return (
        f"{document.relative_to(ROOT)}:{command.line}:\n$ {command.text}\n"
        f"shows:\n{command.answer}\nanswered:\n{real}{ended}"
    )


async def check(terminal: Terminal, document: Path, command: Command, varying: Collection[str]) -> None:
    """Runs a command that ends by itself."""
    deadline = time.monotonic() + (ANSWER_SECONDS if READS.search(command.text) else 0.0)
    while True:
        status, real = await terminal.run(command.text)
        if same(command.answer, real, varying) and (status != 0) == fails(command):
            return
        if time.monotonic() > deadline:
            pytest.fail(told(document, command, real, status))
        # The hub tells nobody of this terminal when the state has come about.
        await asyncio.sleep(0.1)


async def check_interrupted(
    terminal: Terminal, document: Path, command: Command, varying: Collection[str]
) -> None:
    """Runs a command until it has shown all, and what is typed at the second terminal meanwhile."""
    process = await terminal.start(command.text)
    assert process.stdout is not None
    real, shown = "", ""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            for answer, other in zip(command.answers, (*command.meanwhile, None), strict=True):
                shown += answer
                while not same(shown, real, varying, so_far=other is None):
                    written = await process.stdout.read(65536)
                    assert written, f"ended by itself: {told(document, command, real)}"
                    real += written.decode()
                if other is not None:
                    status, wrote = await terminal.run(other)
                    assert (status, wrote) == (0, ""), f"{other}\nanswered:\n{wrote}"
            interrupt(process)
            await process.communicate()
    except TimeoutError:
        pytest.fail(told(document, command, real))
    finally:
        if process.returncode is None:
            interrupt(process, signal.SIGKILL)
            await process.communicate()


async def connected(terminal: Terminal, node_id: str) -> None:
    """Returns when a node has its link."""
    listing = "grpcurl -plaintext 127.0.0.1:50053 cloudhub.v1.ConnectorAdmin/ListLinks"
    async with asyncio.timeout(ANSWER_SECONDS):
        while f'"{node_id}"' not in (await terminal.run(listing))[1]:  # noqa: ASYNC110 - real processes
            await asyncio.sleep(0.05)


@asynccontextmanager
async def described_hub(folder: Path) -> AsyncIterator[Terminal]:
    """One of each service and the nodes edge-1 and edge-2, which upload now and then."""
    path = programs()
    async with HubProcesses(folder, FLAGS) as hub:
        terminal = Terminal({service: hub.address(service) for service in PORTS.values()}, path)
        for node_id in ("edge-1", "edge-2"):
            # An edge whose node was deleted comes back after its longest delay.
            flags = ("--database", str(folder / f"{node_id}.db"), "--most-delay", "60", "--upload-every", "1")
            await hub.start_edges([node_id], *flags, name=node_id)
            await connected(terminal, node_id)
        yield terminal


@sittings
async def test_every_command_answers_what_is_shown(pages: list[Path], tmp_path: Path) -> None:
    varying = varying_of((OPERATIONS / "README.md").read_text())
    async with described_hub(tmp_path) as terminal:
        for page, command in ((shown, one) for shown in pages for one in commands_of(shown.read_text())):
            if TLS in command.text:
                continue
            run = check_interrupted if command.interrupted else check
            await run(terminal, page, command, varying)


async def test_every_command_for_a_hub_with_tls_is_answered(tmp_path: Path) -> None:
    certificates = tmp_path / "certs"
    create_server_certificate(certificates)
    create_program_certificate(certificates, "ann", ["operator"])
    found = [(page, one) for page in SHOWING for one in commands_of(page.read_text()) if TLS in one.text]
    assert found
    async with running_hub(tmp_path / "data", certificates, choose_ports(), tls=True) as hub:
        addresses = {service: hub.of(service)[0].address for service in PORTS.values()}
        terminal = Terminal(addresses, programs(), tmp_path)
        for document, command in found:
            await check(terminal, document, command, ())

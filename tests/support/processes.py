"""The services and a fleet of edges as real processes, each of which can be killed and started again."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.rpc import open_channel
from tests.support.certs import TestAuthority

ROOT = Path(__file__).parent.parent.parent
HOST = "127.0.0.1"
SERVICES = ("sessions", "dispatcher", "connector")
READY_SECONDS = 30.0
STOP_SECONDS = 25.0
_PR_SET_PDEATHSIG = 1


async def eventually(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> None:
    """Returns when the condition holds: for real processes and sockets, which tell nobody."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - it is not ours to signal
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what or condition}") from None


def _own_ports() -> Iterator[int]:
    """This process's share of the ports below those that systems give out by themselves: between that a port
    was found free and that a service binds it, no connection of others and no other test takes it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST_PORT + worker % _MOST_WORKERS * _PORTS_OF_A_WORKER
    # Not from the same one on in each run: others may be at work on this machine.
    start = os.getpid() % _PORTS_OF_A_WORKER
    return cycle(first + (start + at) % _PORTS_OF_A_WORKER for at in range(_PORTS_OF_A_WORKER))


_FIRST_PORT, _MOST_WORKERS, _PORTS_OF_A_WORKER = 20_000, 12, 1_000
_ports = _own_ports()


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as trial:
            try:
                trial.bind((HOST, port))
            except OSError:
                return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now; they are fixed, so that a service comes back where it was."""
    found = list(islice(filter(_is_free, islice(_ports, _PORTS_OF_A_WORKER)), count))
    assert len(found) == count, f"{count} free ports wanted, {len(found)} found"
    return found


def clean_environment() -> dict[str, str]:
    """This process's environment without what would set up a service."""
    foreign = ("OTEL_", "CLOUDHUB_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


# Run by the child itself, not between fork and exec, where the gRPC threads of this process may hold
# locks: the kernel ends a child whose parent was killed, so that nothing is left behind.
_RUN_MODULE = f"""
import ctypes, runpy, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGKILL)})
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class HubProcesses:
    """An async context: all services up when it is entered, no process left when it is left.

    `flags` are added to those of a service; `services` leaves services out. Of several `dispatchers`, each
    with an outbox of its own, the second is `dispatcher-2`.
    """

    def __init__(
        self,
        folder: Path,
        flags: Mapping[str, Iterable[str]] | None = None,
        services: Iterable[str] = SERVICES,
        dispatchers: int = 1,
    ) -> None:
        self.folder = folder
        more = [f"dispatcher-{number}" for number in range(2, dispatchers + 1)]
        # Connectors come last: they look for all the others.
        self._services = (*(name for name in services if name != "connector"), *more)
        self._services += ("connector",) if "connector" in services else ()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self.authority = TestAuthority(folder / "certificates")
        *ports, self.edge_port = free_ports(4 + len(more))
        self._ports = dict(zip((*SERVICES, *more), ports, strict=True))
        server = self.authority.issue("hub", None)
        self._flags: dict[str, list[str]] = {
            "sessions": [
                *("--listen", self.address("sessions")),
                *("--database", f"sqlite:///{folder / 'sessions.db'}"),
            ],
            "connector": [
                # The same port, by UDP.
                *("--quic-listen", f"{HOST}:{self.edge_port}"),
                *("--listen", f"{HOST}:{self.edge_port}", "--grpc-listen", self.address("connector")),
                *("--dispatchers", ",".join(self.address(name) for name in ("dispatcher", *more))),
                *("--certificate", str(server.certificate), "--private-key", str(server.key)),
                *("--client-ca", str(self.authority.certificate)),
            ],
        }
        for name in ("dispatcher", *more):
            self._flags[name] = [
                *("--listen", self.address(name), "--sessions", self.address("sessions")),
                *("--database", f"sqlite:///{folder / name}.db"),
                *(flags or {}).get("dispatcher", ()),
            ]
        for name in ("sessions", "connector"):
            self._flags[name] += (flags or {}).get(name, ())

    async def __aenter__(self) -> "HubProcesses":
        try:
            for name in self._services:
                await self.start(name)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def address(self, service: str) -> str:
        """HOST:PORT of a service's gRPC server."""
        return f"{HOST}:{self._ports[service]}"

    def log(self, name: str) -> str:
        """All that a process wrote so far."""
        return (self.folder / f"{name}.log").read_text()

    async def launch(self, service: str) -> None:
        """Starts a service and returns at once."""
        await self._run(service, f"services.{service.partition('-')[0]}", *self.flags_of(service))

    def flags_of(self, service: str) -> list[str]:
        """What a service is started with."""
        name = f"{service}-1" if service in SERVICES else service
        flags = [*self._flags[service], "--name", name, "--metrics-listen", f"{HOST}:0"]
        return [*flags, "--grpc-insecure-loopback=true"]

    def pid(self, name: str) -> int:
        """The process id of what runs."""
        return self._processes[name].pid

    async def start(self, service: str, health: str = "") -> None:
        """Starts a service, for the first time or again; returns when it (or one of its gRPC services,
        named by `health`) serves."""
        await self.launch(service)
        await self.serving(service, health)

    async def serving(self, service: str, health: str = "") -> None:
        """Returns when the health of the service says SERVING."""
        wanted = health_pb2.HealthCheckRequest(service=health)
        try:
            async with asyncio.timeout(READY_SECONDS), open_channel(self.address(service)) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack Watch
                while True:
                    try:
                        async for answer in stub.Watch(wanted, wait_for_ready=True):
                            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                                return
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.UNAVAILABLE:
                            raise
        except TimeoutError:
            raise AssertionError(f"{service} does not serve:\n{self.log(service)}") from None

    @property
    def edge_database(self) -> Path:
        """Where the fleet keeps its objects."""
        return self.folder / "edges.db"

    async def start_edges(self, node_ids: Iterable[str], *flags: str, name: str = "edges") -> None:
        """Starts one process with the edge agents of these nodes; `flags` win over those given here."""
        certificates = self.authority.certificate.parent
        (certificates / "nodes").mkdir(exist_ok=True)
        nodes = list(node_ids)
        for node_id in nodes:
            if not (certificates / "nodes" / f"{node_id}.crt").exists():
                self.authority.issue(f"system:node:{node_id}", file=f"nodes/{node_id}")
        await self._run(
            name,
            *("edge", "--server", f"wss://localhost:{self.edge_port}"),
            *("--ca", str(self.authority.certificate), "--certificates", str(certificates)),
            *("--database", str(self.edge_database), "--first-delay", "0.05", "--most-delay", "0.3"),
            *(part for node_id in nodes for part in ("--node", node_id)),
            *flags,
        )

    async def _run(self, name: str, module: str, *arguments: str) -> None:
        assert name not in self._processes, f"{name} runs already"
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _RUN_MODULE, module),
                *arguments,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=clean_environment(),
            )

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process that runs."""
        process = self._processes[name]
        assert process.returncode is None, f"{name} ended by itself:\n{self.log(name)}"
        process.send_signal(number)

    async def ended(self, name: str) -> int:
        """The exit status of a process that was told to end."""
        process = self._processes.pop(name)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError(f"{name} did not stop:\n{self.log(name)}") from None

    async def kill(self, *names: str) -> None:
        """kill -9, of several in the same instant."""
        for name in names:
            self.signal(name, signal.SIGKILL)
        for name in names:
            await self.ended(name)

    async def close(self) -> None:
        """Ends what still runs, at once."""
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
        for process in self._processes.values():
            await process.wait()
        self._processes.clear()

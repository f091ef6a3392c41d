"""The three services and edge agents as real processes, each of which can be killed and started again."""

import asyncio
import datetime as dt
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.rpc import open_channel
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers
from tests.support.processes import free_ports

ROOT = Path(__file__).parent.parent.parent
HOST = "127.0.0.1"
SERVICES = ("sessions", "dispatcher", "connector")
ENROLMENT = "enrolment"
READY_SECONDS = 30.0
STOP_SECONDS = 25.0


class HubProcesses:
    """An async context: all services up when it is entered, no process left when it is left."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, enrolment: bool = False) -> None:
        self.folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
            **environment,
        }
        # Good for longer than the alerts about certificates look ahead, as is the server's below.
        self.authority = TestAuthority(folder / "certificates", ends=dt.timedelta(days=365))
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._ended: list[asyncio.subprocess.Process] = []
        self.services = (*SERVICES, ENROLMENT) if enrolment else SERVICES
        self.edge_port, *ports = free_ports(1 + 2 * len(self.services))
        self._grpc_ports = dict(zip(self.services, ports[::2], strict=True))
        self.metrics_ports = dict(zip(self.services, ports[1::2], strict=True))
        self.peers = EdgePeers(self.authority, self.edge_port)
        server = self.authority.issue("hub", None, ends=dt.timedelta(days=30))
        addresses = {name: f"{HOST}:{port}" for name, port in self._grpc_ports.items()}
        self._flags: dict[str, list[str]] = {
            "sessions": [
                *("--listen", addresses["sessions"], "--database", f"sqlite:///{folder / 'sessions.db'}")
            ],
            "dispatcher": [
                *("--listen", addresses["dispatcher"], "--sessions", addresses["sessions"]),
                *("--database", f"sqlite:///{folder / 'dispatcher.db'}"),
            ],
            ENROLMENT: [
                *("--listen", f"{HOST}:0", "--grpc-listen", addresses.get(ENROLMENT, "")),
                *("--sessions", addresses["sessions"]),
                *("--certificate", str(server.certificate), "--private-key", str(server.key)),
                *("--client-ca", str(self.authority.certificate)),
                *("--ca-certificate", str(self.authority.certificate)),
                *("--ca-private-key", str(self.authority.key_file)),
            ],
            "connector": [
                *("--quic-listen", f"{HOST}:0"),
                *("--listen", f"{HOST}:{self.edge_port}", "--grpc-listen", addresses["connector"]),
                *("--dispatchers", addresses["dispatcher"]),
                *("--certificate", str(server.certificate), "--private-key", str(server.key)),
                *("--client-ca", str(self.authority.certificate)),
            ],
        }

    async def __aenter__(self) -> "HubProcesses":
        try:
            for name in self.services:
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
        return f"{HOST}:{self._grpc_ports[service]}"

    def log(self, name: str) -> str:
        """All that a process wrote so far."""
        return (self.folder / f"{name}.log").read_text()

    async def start(self, service: str) -> None:
        """Starts a service, for the first time or again; returns when it serves."""
        flags = [*self._flags[service], "--name", f"{service}-1", "--grpc-insecure-loopback=true"]
        metrics = ["--metrics-listen", f"{HOST}:{self.metrics_ports[service]}"]
        await self._run(service, "-m", f"services.{service}", *flags, *metrics)
        await self.serving(service)

    async def serving(self, service: str) -> None:
        """Returns when the service's health says SERVING."""
        try:
            async with asyncio.timeout(READY_SECONDS), open_channel(self.address(service)) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack Watch
                while True:
                    try:
                        async for answer in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
                            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                                return
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.UNAVAILABLE:
                            raise
        except TimeoutError:
            raise AssertionError(f"{service} does not serve:\n{self.log(service)}") from None

    async def start_edge(self, node_id: str) -> None:
        """Starts the edge agent of one node."""
        issued = self.authority.node(node_id)
        await self._run(
            node_id,
            *("-m", "edge", "--server", f"wss://localhost:{self.edge_port}", "--node", node_id),
            *("--ca", str(self.authority.certificate), "--database", str(self.folder / f"{node_id}.db")),
            *("--certificate", str(issued.certificate), "--key", str(issued.key)),
            *("--first-delay", "0.05", "--most-delay", "0.2"),
        )

    async def _run(self, name: str, *arguments: str) -> None:
        assert name not in self._processes, f"{name} runs already"
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, cwd=ROOT, stdout=log, stderr=log, env=self._environment
            )

    async def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals a process and waits for its end; its exit status."""
        process = self._processes.pop(name)
        self._ended.append(process)
        if process.returncode is None:
            process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError(f"{name} did not stop:\n{self.log(name)}") from None

    async def restart(self, service: str, number: signal.Signals) -> None:
        """Ends a service and starts it again; returns when all of the hub works with it."""
        await self.stop(service, number)
        await self.start(service)
        await self.serving("connector")

    async def close(self) -> None:
        """Ends what still runs, at once."""
        for name in list(self._processes):
            await self.stop(name, signal.SIGKILL)

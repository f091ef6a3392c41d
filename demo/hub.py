"""The three services of a hub as processes on this machine."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from demo.processes import Child
from services.runtime.rpc import open_channel

HOST = "127.0.0.1"
READY_SECONDS = 30.0
STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class HubPorts:
    """Where the services listen."""

    sessions: int = 50052
    dispatcher: int = 50051
    connector: int = 50053
    edges: int = 10000
    sessions_metrics: int = 9465
    dispatcher_metrics: int = 9464
    connector_metrics: int = 9466

    @property
    def server(self) -> str:
        """What edges dial."""
        return f"wss://{HOST}:{self.edges}"


def _bound(port: int) -> socket.socket | None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError:
        listener.close()
        return None
    return listener


def choose_ports(wanted: HubPorts | None = None) -> HubPorts:
    """The ports wanted, each replaced by a free one where it is taken; None: free ones for all."""
    names = HubPorts.__dataclass_fields__
    held: list[socket.socket] = []
    chosen: dict[str, int] = {}
    try:
        for name in names:
            listener = _bound(getattr(wanted, name)) if wanted else None
            listener = listener or _bound(0)
            if listener is None:
                raise OSError(f"no free port on {HOST}")
            # Held until all are chosen, so that none is chosen twice.
            held.append(listener)
            chosen[name] = listener.getsockname()[1]
    finally:
        for listener in held:
            listener.close()
    return HubPorts(**chosen)


@dataclass(frozen=True, slots=True)
class Hub:
    """A running hub; in the order in which it was started."""

    ports: HubPorts
    sessions: Child
    dispatcher: Child
    connector: Child

    @property
    def children(self) -> tuple[Child, Child, Child]:
        """All of its processes."""
        return self.sessions, self.dispatcher, self.connector

    @property
    def dispatcher_address(self) -> str:
        """For publishers, subscribers and operators."""
        return f"{HOST}:{self.ports.dispatcher}"

    @property
    def sessions_address(self) -> str:
        """For operators."""
        return f"{HOST}:{self.ports.sessions}"


async def _serving(address: str) -> None:
    """Returns when the server's health says SERVING."""
    async with open_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack Watch
        while True:
            try:
                async for answer in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise


def service_arguments(name: str) -> list[str]:
    """What the interpreter is told, to run a service."""
    return ["-m", f"services.{name}"]


@asynccontextmanager
async def running_hub(
    data: Path,
    certificates: Path,
    ports: HubPorts,
    *,
    launch: Callable[[str], list[str]] = service_arguments,
) -> AsyncIterator[Hub]:
    """Sessions, dispatcher and connector, each up before the next; stopped in reverse order.

    Databases are kept in `data`, logs in `data/logs`; `launch` says how the interpreter is told to run
    a service. Raises ProcessFault if one does not come up.
    """
    started: list[Child] = []

    async def start(name: str, grpc_port: int, metrics_port: int, *flags: str) -> Child:
        arguments = [*flags, "--name", f"{name}-1", "--metrics-listen", f"{HOST}:{metrics_port}"]
        child = await Child.start(name, [*launch(name), *arguments], data / "logs" / f"{name}.log")
        started.append(child)
        ready = asyncio.create_task(_serving(f"{HOST}:{grpc_port}"), name=f"{name} ready")
        await child.within(READY_SECONDS, ready, "serving")
        return child

    try:
        sessions = await start(
            "sessions",
            ports.sessions,
            ports.sessions_metrics,
            *("--listen", f"{HOST}:{ports.sessions}"),
            *("--database", f"sqlite:///{data / 'sessions.db'}"),
        )
        dispatcher = await start(
            "dispatcher",
            ports.dispatcher,
            ports.dispatcher_metrics,
            *("--listen", f"{HOST}:{ports.dispatcher}"),
            *("--sessions", f"{HOST}:{ports.sessions}"),
            *("--database", f"sqlite:///{data / 'dispatcher.db'}"),
            *("--cluster-ca", str(certificates / "ca.crt")),
        )
        connector = await start(
            "connector",
            ports.connector,
            ports.connector_metrics,
            *("--listen", f"{HOST}:{ports.edges}"),
            *("--grpc-listen", f"{HOST}:{ports.connector}"),
            *("--dispatchers", f"{HOST}:{ports.dispatcher}"),
            *("--certificate", str(certificates / "server.crt")),
            *("--private-key", str(certificates / "server.key")),
            *("--client-ca", str(certificates / "ca.crt")),
        )
        yield Hub(ports, sessions, dispatcher, connector)
    finally:
        for child in reversed(started):
            await child.stop(STOP_SECONDS)

"""The services of a hub as processes on this machine, one or several replicas of each."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from demo.databases import Databases, sqlite_databases
from demo.ports import HOST, HubPorts
from demo.processes import Child, Launch
from services.runtime.rpc import open_channel

READY_SECONDS = 60.0
STOP_SECONDS = 15.0
SERVICES = ("sessions", "dispatcher", "connector")


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
    """What the interpreter is told, to run the service of an instance such as `dispatcher-1`."""
    return ["-m", f"services.{name.rpartition('-')[0]}"]


class Instance:
    """One process of a service; ended, it may be started again under its name, on its ports."""

    def __init__(self, name: str, address: str, arguments: Sequence[str], log_path: Path) -> None:
        self.name = name
        self.address = address
        """HOST:PORT of its gRPC server."""
        self.arguments = list(arguments)
        self._log_path = log_path
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        """The present process, or the last one."""
        assert self._child is not None, f"{self.name} was not started"
        return self._child

    async def launch(self) -> None:
        """Starts the process and returns at once; its log goes on where the last process left it."""
        again = self._child is not None
        self._child = await Child.start(self.name, self.arguments, self._log_path, append=again)

    async def start(self) -> None:
        """Starts the process; returns when it serves. Raises ProcessFault."""
        await self.launch()
        await self.serving()

    async def serving(self) -> None:
        """Returns when it serves. Raises ProcessFault if it ends before, or in time does not."""
        ready = asyncio.create_task(_serving(self.address), name=f"{self.name} ready")
        await self.child.within(READY_SECONDS, ready, "serving")

    async def stop(self) -> bool:
        """Ends it within its grace; whether it ended by itself."""
        return self._child is None or await self._child.stop(STOP_SECONDS)


@dataclass(frozen=True, slots=True)
class Hub:
    """A running hub; each service has one instance per replica."""

    ports: tuple[HubPorts, ...]
    """Of each replica."""
    sessions: tuple[Instance, ...]
    dispatchers: tuple[Instance, ...]
    connectors: tuple[Instance, ...]
    host: str = HOST
    """The address that all of them listen on."""

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All of them, in the order in which they are started."""
        return self.sessions + self.dispatchers + self.connectors

    def of(self, service: str) -> tuple[Instance, ...]:
        """The instances of a service."""
        return {"sessions": self.sessions, "dispatcher": self.dispatchers, "connector": self.connectors}[
            service
        ]

    @property
    def dispatcher_addresses(self) -> str:
        """For publishers, subscribers and operators: any of them will do."""
        return _joined(self.dispatchers)

    @property
    def sessions_addresses(self) -> str:
        """For operators: any of them will do."""
        return _joined(self.sessions)

    @property
    def server(self) -> str:
        """What edges dial: any of them will do."""
        return ",".join(f"wss://{self.host}:{ports.edges}" for ports in self.ports)

    @property
    def quic_server(self) -> str:
        """The same over QUIC."""
        return ",".join(f"quic://{self.host}:{ports.edges_quic}" for ports in self.ports)


def _joined(instances: Sequence[Instance]) -> str:
    return ",".join(instance.address for instance in instances)


def make_hub(
    data: Path,
    certificates: Path,
    ports: tuple[HubPorts, ...],
    databases: Databases,
    *,
    flags: Mapping[str, Sequence[str]] | None = None,
    launch: Launch = service_arguments,
    host: str = HOST,
) -> Hub:
    """A hub of which nothing is started yet. Logs go to `data/logs`; `flags` are further ones, by service or
    by the name of an instance."""

    def instances(
        service: str, number_of: Callable[[HubPorts], tuple[int, int]], *own: str
    ) -> list[Instance]:
        made = []
        for number, replica in enumerate(ports, 1):
            grpc_port, metrics_port = number_of(replica)
            name, address = f"{service}-{number}", f"{host}:{grpc_port}"
            arguments = [*launch(name), *own]
            for whose in (service, name):
                arguments += (flags or {}).get(whose, ())
            arguments += ["--name", name, "--metrics-listen", f"{host}:{metrics_port}"]
            arguments += ["--grpc-listen" if service == "connector" else "--listen", address]
            if service == "connector":
                arguments += ["--listen", f"{host}:{replica.edges}"]
                arguments += ["--quic-listen", f"{host}:{replica.edges_quic}"]
            made.append(Instance(name, address, arguments, data / "logs" / f"{name}.log"))
        return made

    sessions = instances(
        "sessions", lambda one: (one.sessions, one.sessions_metrics), "--database", databases.sessions
    )
    dispatchers = instances(
        "dispatcher",
        lambda one: (one.dispatcher, one.dispatcher_metrics),
        *("--database", databases.dispatcher),
        *("--sessions", _joined(sessions)),
        *("--cluster-ca", str(certificates / "ca.crt")),
    )
    connectors = instances(
        "connector",
        lambda one: (one.connector, one.connector_metrics),
        *("--dispatchers", _joined(dispatchers)),
        *("--certificate", str(certificates / "server.crt")),
        *("--private-key", str(certificates / "server.key")),
        *("--client-ca", str(certificates / "ca.crt")),
    )
    return Hub(ports, tuple(sessions), tuple(dispatchers), tuple(connectors), host)


@asynccontextmanager
async def running_hub(
    data: Path,
    certificates: Path,
    ports: tuple[HubPorts, ...],
    databases: Databases | None = None,
    *,
    flags: Mapping[str, Sequence[str]] | None = None,
    launch: Launch = service_arguments,
    host: str = HOST,
) -> AsyncIterator[Hub]:
    """Sessions, dispatchers and connectors, each service up before the next; stopped in reverse order.

    Without `databases` they are SQLite files in `data`. Raises ProcessFault if one does not come up.
    """
    databases = databases or sqlite_databases(data)
    hub = make_hub(data, certificates, ports, databases, flags=flags, launch=launch, host=host)
    try:
        for service in SERVICES:
            async with asyncio.TaskGroup() as group:
                for instance in hub.of(service):
                    group.create_task(instance.start(), name=f"start {instance.name}")
        yield hub
    finally:
        for service in reversed(SERVICES):
            await asyncio.gather(*(instance.stop() for instance in hub.of(service)))

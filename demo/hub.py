"""The services of a hub as processes on this machine, one or several replicas of each."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from demo.databases import Databases, database_variable, sqlite_databases
from demo.ports import HOST, HubPorts
from demo.processes import Child, Launch
from edge.certificates import create_program_certificate, create_service_certificate
from services.runtime.clock import SystemClock
from services.runtime.rpc import NO_ANSWER, open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, MutualTls, Security, is_loopback
from services.runtime.tls_files import TlsFiles

READY_SECONDS = 60.0
STOP_SECONDS = 15.0
SERVICES = ("sessions", "dispatcher", "connector")
"""Of every hub."""
ENROLMENT = "enrolment"
_STAGES = (("sessions",), ("dispatcher",), ("connector", ENROLMENT))
"""What is started side by side: each needs those before it."""


PROGRAM = "demo"
"""Whose certificate the programs of this folder show to a hub with TLS."""


def hub_security(certificates: Path, *, tls: bool) -> Security:
    """What programs on this machine open channels to the hub with: a publisher's and operator's certificate,
    made if it is not there, or plaintext. Raises CertificateFault."""
    if not tls:
        return PLAINTEXT_LOOPBACK
    own = create_program_certificate(certificates, PROGRAM, ["publisher", "operator"])
    files = TlsFiles(own.certificate_path, own.key_path, certificates / "ca.crt")
    return MutualTls(files, SystemClock())


def _grpc_flags(certificates: Path, *, tls: bool) -> list[str]:
    """How a service protects its gRPC."""
    if not tls:
        return ["--grpc-insecure-loopback=true"]
    own = create_service_certificate(certificates)
    return [
        *("--grpc-certificate", str(own.certificate_path)),
        *("--grpc-private-key", str(own.key_path)),
        *("--grpc-ca", str(certificates / "ca.crt")),
    ]


async def _serving(address: str, security: Security) -> None:
    """Returns when the server's health says SERVING."""
    async with open_channel(address, security) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack Watch
        while True:
            try:
                async for answer in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.aio.AioRpcError as error:
                if error.code() not in NO_ANSWER:
                    raise


def service_arguments(name: str) -> list[str]:
    """What the interpreter is told, to run the service of an instance such as `dispatcher-1`."""
    return ["-m", f"services.{name.rpartition('-')[0]}"]


class Instance:
    """One process of a service; ended, it may be started again under its name, on its ports."""

    def __init__(
        self,
        name: str,
        address: str,
        arguments: Sequence[str],
        log_path: Path,
        security: Security,
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.address = address
        """HOST:PORT of its gRPC server."""
        self.arguments = list(arguments)
        self.environment = dict(environment)
        """What of its settings no command line may show, which everybody on the machine can read."""
        self.security = security
        """What channels to it are opened with."""
        self._log_path = log_path
        self._child: Child | None = None

    def open_channel(self) -> grpc.aio.Channel:
        """A channel to its gRPC server, as publisher and operator."""
        return open_channel(self.address, self.security)

    @property
    def child(self) -> Child:
        """The present process, or the last one."""
        assert self._child is not None, f"{self.name} was not started"
        return self._child

    async def launch(self) -> None:
        """Starts the process and returns at once; its log goes on where the last process left it."""
        again = self._child is not None
        self._child = await Child.start(
            self.name, self.arguments, self._log_path, append=again, environment=self.environment
        )

    async def start(self) -> None:
        """Starts the process; returns when it serves. Raises ProcessFault."""
        await self.launch()
        await self.serving()

    async def serving(self) -> None:
        """Returns when it serves. Raises ProcessFault if it ends before, or in time does not."""
        ready = asyncio.create_task(_serving(self.address, self.security), name=f"{self.name} ready")
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
    enrolments: tuple[Instance, ...] = ()
    """As many as the hub was made with, none above the number of replicas."""
    host: str = HOST
    """The address that all of them listen on."""
    security: Security = PLAINTEXT_LOOPBACK
    """What channels to them are opened with."""

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All of them, in the order in which they are started."""
        return self.sessions + self.dispatchers + self.connectors + self.enrolments

    def of(self, service: str) -> tuple[Instance, ...]:
        """The instances of a service."""
        return {
            "sessions": self.sessions,
            "dispatcher": self.dispatchers,
            "connector": self.connectors,
            ENROLMENT: self.enrolments,
        }[service]

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

    @property
    def enrolment_servers(self) -> tuple[str, ...]:
        """Where nodes get their certificates."""
        return tuple(f"https://{self.host}:{ports.enrolment}" for ports in self.ports[: len(self.enrolments)])


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
    tls: bool = False,
    enrolments: int = 0,
) -> Hub:
    """A hub of which nothing is started yet. Logs go to `data/logs`; `flags` are further ones, by service or
    by the name of an instance. With `tls`, and on another address than loopback, gRPC needs certificates.
    So many `enrolments` give nodes certificates of the hub's CA, whose key is in `certificates`."""
    tls = tls or not is_loopback(f"{host}:0")
    security = hub_security(certificates, tls=tls)
    grpc_flags = _grpc_flags(certificates, tls=tls)

    def instances(
        service: str, number_of: Callable[[HubPorts], tuple[int, int]], *own: str, database: str = ""
    ) -> list[Instance]:
        made = []
        for number, replica in enumerate(ports, 1):
            grpc_port, metrics_port = number_of(replica)
            name, address = f"{service}-{number}", f"{host}:{grpc_port}"
            arguments = [*launch(name), *own, *grpc_flags]
            for whose in (service, name):
                arguments += (flags or {}).get(whose, ())
            arguments += ["--name", name, "--metrics-listen", f"{host}:{metrics_port}"]
            # The `--listen` of a service that edges dial is for them.
            arguments += ["--grpc-listen" if service in ("connector", ENROLMENT) else "--listen", address]
            if service == "connector":
                arguments += ["--listen", f"{host}:{replica.edges}"]
                arguments += ["--quic-listen", f"{host}:{replica.edges_quic}"]
            elif service == ENROLMENT:
                arguments += ["--listen", f"{host}:{replica.enrolment}"]
            log_path = data / "logs" / f"{name}.log"
            environment = database_variable(service, database) if database else {}
            made.append(Instance(name, address, arguments, log_path, security, environment))
        return made

    sessions = instances(
        "sessions",
        lambda one: (one.sessions, one.sessions_metrics),
        *("--enrolment-ca", str(certificates / "ca.crt")),
        database=databases.sessions,
    )
    dispatchers = instances(
        "dispatcher",
        lambda one: (one.dispatcher, one.dispatcher_metrics),
        *("--sessions", _joined(sessions)),
        *("--cluster-ca", str(certificates / "ca.crt")),
        database=databases.dispatcher,
    )
    for_edges = [
        *("--certificate", str(certificates / "server.crt")),
        *("--private-key", str(certificates / "server.key")),
        *("--client-ca", str(certificates / "ca.crt")),
    ]
    connectors = instances(
        "connector",
        lambda one: (one.connector, one.connector_metrics),
        *("--dispatchers", _joined(dispatchers)),
        *for_edges,
    )
    every_enrolment = instances(
        ENROLMENT,
        lambda one: (one.enrolment_grpc, one.enrolment_metrics),
        *("--sessions", _joined(sessions)),
        *("--ca-certificate", str(certificates / "ca.crt")),
        *("--ca-private-key", str(certificates / "ca.key")),
        *for_edges,
    )
    return Hub(
        ports,
        *(tuple(sessions), tuple(dispatchers), tuple(connectors), tuple(every_enrolment[:enrolments])),
        host,
        security,
    )


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
    tls: bool = False,
    enrolments: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Hub]:
    """Sessions, dispatchers and connectors, each service up before the next; stopped in reverse order. So
    many `enrolments` are started beside the connectors. `tell` hears of each that serves.

    Without `databases` they are SQLite files in `data`. Raises ProcessFault if one does not come up.
    """
    databases = databases or sqlite_databases(data)
    hub = make_hub(
        *(data, certificates, ports, databases),
        flags=flags,
        launch=launch,
        host=host,
        tls=tls,
        enrolments=enrolments,
    )
    stages = [[instance for service in stage for instance in hub.of(service)] for stage in _STAGES]

    async def start(instance: Instance) -> None:
        await instance.start()
        tell(f"{instance.name} serves at {instance.address}")

    try:
        for stage in stages:
            async with asyncio.TaskGroup() as group:
                for instance in stage:
                    group.create_task(start(instance), name=f"start {instance.name}")
        yield hub
    finally:
        for stage in reversed(stages):
            await asyncio.gather(*(instance.stop() for instance in stage))

"""A hub as the command line finds it: its processes, dialled as they are needed."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc

from cloudhub.v1 import dispatcher_pb2
from ctl.faults import UNKNOWN, CtlFault, ExitCode, unknown_nodes
from ctl.output import note
from ctl.processes import (
    Answer,
    AttachedConnector,
    Connector,
    Dispatcher,
    NodesFound,
    Service,
    Sessions,
    merged,
)
from services.runtime.clock import SystemClock
from services.runtime.errors import StartupError
from services.runtime.names import shown
from services.runtime.rpc import open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, MutualTls, Security
from services.runtime.settings import check_address, got
from services.runtime.tls_files import TlsFiles


@dataclass(frozen=True, slots=True)
class Access:
    """Where the services are, and how they are spoken to."""

    dispatcher: str
    """HOST:PORT of any dispatcher; several with commas between."""
    sessions: str
    connector: str
    ca: Path | None = None
    """With it, `cert` and `key`: TLS, as an operator or publisher (docs/operations/certificates.md)."""
    cert: Path | None = None
    key: Path | None = None
    timeout_seconds: float = 10.0
    """Of one call."""

    def check(self) -> None:
        """Raises CtlFault for what cannot be."""
        for service in ("dispatcher", "sessions", "connector"):
            for address in getattr(self, service).split(","):
                try:
                    check_address(address)
                except ValueError as fault:
                    raise CtlFault(ExitCode.USAGE, f"--{service}: {fault}{got(address)}") from None
        if len({path is None for path in (self.ca, self.cert, self.key)}) > 1:
            raise CtlFault(
                ExitCode.USAGE,
                "--ca, --cert and --key go together: TLS wants the hub's CA, your certificate and its key",
            )


def security_of(access: Access) -> Security:
    """TLS if `access` names a CA, else plaintext, which stays on this machine. Raises CtlFault for files that
    cannot be used."""
    if access.ca is None or access.cert is None or access.key is None:
        return PLAINTEXT_LOOPBACK
    try:
        return MutualTls(TlsFiles(access.cert, access.key, access.ca), SystemClock(), note)
    except StartupError as error:
        raise CtlFault(ExitCode.USAGE, str(error)) from error


def dial(address: str, security: Security) -> grpc.aio.Channel:
    """A channel to one service. Raises CtlFault for an address that needs TLS."""
    try:
        return open_channel(address, security)
    except StartupError as error:
        raise CtlFault(ExitCode.USAGE, f"{error} (--cert, --key and --ca)") from error


Kind = TypeVar("Kind", bound=Service)
Told = TypeVar(
    "Told",
    dispatcher_pb2.InspectNodeResponse,
    dispatcher_pb2.FindObjectResponse,
    dispatcher_pb2.ExplainDeliveryResponse,
)
# Of a dispatcher that is away, of an older release, or without such a connector; or it cannot ask that.
_ASK_ITSELF = ("NOT_FOUND", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


class Hub:
    """An async context: the services of a hub, each dialled when it is first called."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._open = AsyncExitStack()
        self._reachable: list[Dispatcher] | None = None

    async def __aenter__(self) -> "Hub":
        self._security = security_of(self._access)
        self.dispatchers = [
            await self._dialled(Dispatcher, "dispatcher", address)
            for address in self._access.dispatcher.split(",")
        ]
        self.sessions = await self._dialled(Sessions, "sessions", self._access.sessions)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _dialled(self, kind: type[Kind], name: str, address: str) -> Kind:
        channel = await self._open.enter_async_context(dial(address, self._security))
        return kind(name, address, channel, self._access.timeout_seconds, self._security)

    async def reachable(self) -> list[Dispatcher]:
        """The dispatchers that answer; of several the others are told once, beside the answer.

        Raises CtlFault if none does."""
        if self._reachable is None:
            self._reachable = self.dispatchers
            if len(self.dispatchers) > 1:
                faults = await asyncio.gather(*(one.silence() for one in self.dispatchers))
                self._reachable = [
                    one for one, fault in zip(self.dispatchers, faults, strict=True) if fault is None
                ]
                lost = [fault for fault in faults if fault is not None]
                if not self._reachable:
                    raise lost[0]
                for fault in lost:
                    note(f"cloudhubctl: {fault}; another one is asked")
        return self._reachable

    async def any_dispatcher(self) -> Dispatcher:
        """One that answers: what is stored, all of them know. Raises CtlFault if none does."""
        return (await self.reachable())[0]

    async def nodes(
        self, prefix: str = "", *, only_parked: bool = False, older_than_seconds: float | None = None
    ) -> list[dispatcher_pb2.NodeDelivery]:
        """Every node with what all dispatchers know of it, by way of one that answers: it asks the others.
        Where it could not, those given beside it are asked. Raises CtlFault if none answers."""

        async def asked(one: Dispatcher, everywhere: bool) -> NodesFound:
            return await one.nodes(
                prefix, only_parked=only_parked, older_than_seconds=older_than_seconds, everywhere=everywhere
            )

        first, *others = await self.reachable()
        answers = [await asked(first, True)]
        found = answers[0]
        self._tell_silent(first, found.silent, asked_beside=bool(others))
        if found.silent or not found.asked_others:
            answers += await asyncio.gather(*(asked(one, False) for one in others))
        return merged(answers)

    async def everywhere(
        self, node_id: str, ask: Callable[[Dispatcher], Awaitable[list[Told]]]
    ) -> list[Told]:
        """The pages that a dispatcher tells, which asks the others what they alone know. Where it could not,
        those of the one among the given that holds the session of the node, if one is named. Raises CtlFault
        if none answers."""
        first, *others = await self.reachable()
        pages = await ask(first)
        silent = {one.dispatcher_id: one for page in pages for one in page.silent}
        holder = first
        if others and node_id and (silent or not all(page.everywhere for page in pages)):
            holder = await self.dispatcher_of(node_id)
        self._tell_silent(first, silent.values(), asked_beside=holder is not first)
        return pages if holder is first else await ask(holder)

    @staticmethod
    def _tell_silent(
        asked: Dispatcher, silent: Iterable[dispatcher_pb2.SilentDispatcher], *, asked_beside: bool
    ) -> None:
        missing = "" if asked_beside else "; what is in flight there is not known"
        for one in silent:
            note(
                f"cloudhubctl: dispatcher {shown(one.name or one.dispatcher_id)} at {shown(one.address)} "
                f"did not answer the dispatcher at {asked.address} ({shown(one.reason)}){missing}"
            )

    async def dispatcher_of(self, node_id: str) -> Dispatcher:
        """The one that holds the node's session, which alone knows what is in flight; any, if none does.
        Raises CtlFault if none answers."""
        dispatchers = await self.reachable()
        if len(dispatchers) == 1:
            return dispatchers[0]
        request = dispatcher_pb2.InspectNodeRequest(node_id=node_id, page_size=1)

        async def holds(one: Dispatcher) -> bool:
            try:
                return (await one.call(one.admin.InspectNode, request)).node.connected
            except CtlFault as fault:
                if fault.code is ExitCode.NOT_FOUND:
                    return False
                raise

        held = await asyncio.gather(*map(holds, dispatchers))
        return next((one for one, here in zip(dispatchers, held, strict=True) if here), dispatchers[0])

    async def about(
        self, node_id: str, method: "grpc.aio.UnaryUnaryMultiCallable[Any, Answer]", request: object
    ) -> Answer:
        """What sessions answers about a node. It knows nodes that had a session; whether the hub knows the id
        at all, a dispatcher says."""
        try:
            return await self.sessions.call(method, request)
        except CtlFault as fault:
            if fault.reason in UNKNOWN and await self._is_misspelt(node_id):
                raise unknown_nodes([node_id]) from fault
            raise

    async def _is_misspelt(self, node_id: str) -> bool:
        try:
            asked = await self.any_dispatcher()
            request = dispatcher_pb2.InspectNodeRequest(node_id=node_id, page_size=1)
            await asked.call(asked.admin.InspectNode, request)
        except CtlFault as fault:
            return fault.reason in UNKNOWN
        return False

    async def connector(self, name: str = "") -> Connector | AttachedConnector:
        """The connector of a name or id by way of a dispatcher; where that cannot be, at the address that the
        connector advertises. Without a name that of --connector."""
        if not name:
            return await self._dialled(Connector, "connector", self._access.connector)
        try:
            attached = AttachedConnector(await self.any_dispatcher(), name)
            await attached.count()
        except CtlFault as fault:
            if fault.status not in _ASK_ITSELF:
                raise
            return await self._dialled(Connector, "connector", await self._advertised(name, fault))
        return attached

    async def _advertised(self, name: str, fault: CtlFault) -> str:
        """The address of the connector of a name or id; `fault` is why it is wanted, and told where sessions
        does not answer either."""
        try:
            found = [one for one in await self.sessions.instances() if one.service == "connector"]
        except CtlFault as second:
            if second.code is ExitCode.UNREACHABLE:
                raise fault from second
            raise
        chosen = [one for one in found if name in (one.name, one.instance_id)]
        if not chosen:
            there = ", ".join(sorted(one.name for one in found)) or "none"
            raise CtlFault(ExitCode.NOT_FOUND, f"no connector {name} is attached; there is: {there}")
        if len(chosen) > 1:
            raise CtlFault(ExitCode.USAGE, f"{name} names {len(chosen)} connectors: give an instance id")
        return chosen[0].address

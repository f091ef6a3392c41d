"""How gRPC between programs of the hub is protected: mutual TLS, or nothing at all on this machine alone.

    security = MutualTls(TlsFiles(certificate, private_key, authority), SystemClock())
    async with open_channel(address, security) as channel: ...

A service gets its `Security` from its settings by `security_of`.
"""

import asyncio
import ipaddress
import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import grpc

from services.runtime import tls_files
from services.runtime.clock import Clock
from services.runtime.errors import StartupError
from services.runtime.handshake import obstacle
from services.runtime.revocations import Revocations
from services.runtime.server_tls import ServerTls
from services.runtime.settings import ServiceSettings, split_address
from services.runtime.tls_files import RenewedFiles, TlsFiles, TlsMaterial, read_material

SERVICE_NAME = "service.cloudhub.internal"
"""The DNS name in the certificate of every service. They find each other under addresses that come and go, so
it is this name that a channel asks for, whatever it dials."""


class Security(Protocol):
    """Of the servers and channels of one process."""

    @property
    def authenticates(self) -> bool:
        """Whether callers show certificates, and are held to their roles."""
        ...

    def expires_at(self) -> float:
        """When the certificate expires, in seconds since the epoch; infinite if there is none."""
        ...

    def check_address(self, what: str, address: str) -> None:
        """Raises StartupError if HOST:PORT may not be bound or dialled; `what` says what it is."""
        ...

    def server_tls(self) -> ServerTls | None:
        """What a new connection of a server shakes hands with: of the files as they are now. None for none.
        Raises StartupError if they are not good for a server."""
        ...

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For one channel: of the files as they are now. None for none."""
        ...

    def follow(self, renewed: Callable[[], None]) -> Callable[[], None]:
        """Has `renewed` called after each renewal, until what is returned is called."""
        ...

    async def explain(self, address: str) -> str:
        """Why no connection to the server at HOST:PORT comes about, as far as can be found out; else ""."""
        ...

    async def run(self) -> None:
        """Looks for newer files until cancelled; returns at once where there are none."""
        ...


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT stays on this machine; text that is no address does not."""
    try:
        host, _ = split_address(address)
    except ValueError:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class PlaintextLoopback:
    """Nothing is proven and nothing encrypted, so nothing leaves this machine."""

    authenticates = False

    def expires_at(self) -> float:
        """See Security."""
        return math.inf

    def check_address(self, what: str, address: str) -> None:
        """See Security."""
        if not is_loopback(address):
            raise StartupError(
                f"{what} {address} is not a loopback address: gRPC without TLS stays on this machine; give "
                "a certificate, its key and a CA instead"
            )

    def server_tls(self) -> None:
        """See Security."""

    def channel_credentials(self) -> None:
        """See Security."""

    def follow(self, renewed: Callable[[], None]) -> Callable[[], None]:
        """See Security."""
        return lambda: None

    async def explain(self, address: str) -> str:
        """See Security."""
        return ""

    async def run(self) -> None:
        """See Security."""


PLAINTEXT_LOOPBACK = PlaintextLoopback()


class MutualTls:
    """Both sides show a certificate of the hub's CA. Raises StartupError if the files cannot be used."""

    authenticates = True

    def __init__(
        self,
        files: TlsFiles,
        clock: Clock,
        warn: Callable[[str], None] | None = None,
        revoked: Path | None = None,
    ) -> None:
        """`warn` hears of a key that everybody may read; without one it is logged. `revoked` names the list
        of certificates that servers of the process do not take."""
        self._revocations = Revocations(revoked)
        self._clock = clock
        self._warn = warn
        self._paths = files
        self._followers: list[Callable[[], None]] = []
        self._material: TlsMaterial
        self._server_tls: ServerTls | None = None
        self._files = RenewedFiles("gRPC", files.paths, lambda: self._load(files))

    def _load(self, files: TlsFiles) -> None:
        now_ms = self._clock.wall_ms()
        material = read_material(files, now_ms, self._warn) if self._warn else read_material(files, now_ms)
        if self._server_tls is not None:
            # Of a process that serves: what is no good for that changes nothing.
            self._server_tls = ServerTls(material, self._revocations)
        self._material = material
        for renewed in tuple(self._followers):
            renewed()

    def expires_at(self) -> float:
        """See Security."""
        return self._material.not_after.timestamp()

    def check_address(self, what: str, address: str) -> None:
        """See Security: any."""

    def server_tls(self) -> ServerTls:
        """See Security."""
        if self._server_tls is None:
            self._server_tls = ServerTls(self._material, self._revocations)
        return self._server_tls

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """See Security."""
        material = self._material
        return grpc.ssl_channel_credentials(material.authority, material.private_key, material.certificate)

    def follow(self, renewed: Callable[[], None]) -> Callable[[], None]:
        """See Security."""
        self._followers.append(renewed)
        return lambda: self._followers.remove(renewed)

    async def explain(self, address: str) -> str:
        """See Security."""
        return await obstacle(address, SERVICE_NAME, self._paths)

    def look(self) -> bool:
        """Loads files that are newer; whether there were any that can be used."""
        newer = self._files.look()
        return self._revocations.look() or newer

    async def run(self) -> None:
        """See Security."""
        while True:
            await asyncio.sleep(tls_files.LOOK_SECONDS)
            self.look()


def security_of(settings: ServiceSettings, clock: Clock) -> Security:
    """What the settings of a service ask for. Raises StartupError if the files cannot be used."""
    if settings.grpc_insecure_loopback:
        return PLAINTEXT_LOOPBACK
    files = TlsFiles(settings.grpc_certificate, settings.grpc_private_key, settings.grpc_ca)
    return MutualTls(files, clock, revoked=settings.grpc_revoked)

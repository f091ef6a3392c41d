"""How an edge agent is set up; read once, by whoever starts it."""

import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from aioquic.quic.configuration import QuicConfiguration

from edge.transport import Transport

DEFAULT_PROJECT = "e632aba927ea4ac2b575ec1603d56f10"


_QUIC_PORT = 10001
_PROTOCOL = "cloudhub-edge/1"
# With `auto`: enough for a handshake over a bad network, short enough to be no outage where UDP is blocked.
_QUIC_TRY_SECONDS = 6.0


class SettingsFault(Exception):
    """A setting that cannot be; the text says which and what would be right."""


def _told(server: str) -> str:
    """An address in a message, unless a password may be in it."""
    return "" if "@" in server else f" {server!r}"


MAX_MESSAGE_BYTES = 4 * 1024 * 1024 - 64 * 1024


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Settings of one process; its nodes share them. Times in seconds."""

    server: str
    """`wss://HOST:PORT` of the hub; several, with commas between, are tried in an order of chance."""
    ca: Path
    """The certificate of the CA that signed the hub's."""
    database: Path
    transport: Transport = "websocket"
    quic_server: str = ""
    """`quic://HOST:PORT`, as `server`; empty: the same hosts, port 10001."""
    certificates: Path | None = None
    """Folder with `nodes/<id>.crt` and `nodes/<id>.key` (the layout of `edge.certificates`)."""
    certificate: Path | None = None
    """One node's certificate and key, instead of the folder."""
    key: Path | None = None
    project_id: str = DEFAULT_PROJECT
    sync: Literal["full", "normal"] = "full"
    """SQLite's `synchronous`: with `normal` a power cut may take acknowledged messages."""
    history: bool = True
    keepalive_seconds: float = 15.0
    silence_seconds: float = 45.0
    """A link over which nothing came for so long, pongs included, is dead."""
    open_seconds: float = 15.0
    """For connecting, TLS and the hub's verdict together."""
    first_delay_seconds: float = 0.5
    most_delay_seconds: float = 30.0
    dials_at_once: int = 64
    most_unstored: int = 512
    """Received messages of a link that wait for the disk before its reading pauses."""
    uploads_in_flight: int = 16
    most_uploads_waiting: int = 1000
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Below the hub's own bounds (`--frame-most-bytes` of its connectors, `--max-delivery-bytes` of its
    dispatchers): more it does not take."""
    repeat_seconds: float = 5.0
    """Without an answer for so long, uploads in flight are sent again."""

    def __post_init__(self) -> None:
        for server in self.servers:
            if not server.startswith("wss://") or server.count("/") != 2 or "@" in server:
                raise SettingsFault(f"server{_told(server)}: should be wss://HOST:PORT")
        for server in self.quic_servers:
            _, _, port = server.rpartition(":")
            if (
                not server.startswith("quic://")
                or server.count("/") != 2
                or "@" in server
                or not port.isdecimal()
            ):
                raise SettingsFault(f"quic-server{_told(server)}: should be quic://HOST:PORT")
        if (self.certificates is None) == (self.certificate is None):
            raise SettingsFault("certificates: give either a folder of them or one certificate and its key")
        if self.certificate is not None and self.key is None:
            raise SettingsFault("key: a certificate needs its key")
        if self.max_message_bytes < 1024:
            raise SettingsFault("max-message-bytes: should be at least 1024")
        for name in ("keepalive_seconds", "silence_seconds", "open_seconds", "first_delay_seconds"):
            if getattr(self, name) <= 0:
                raise SettingsFault(f"{name.replace('_', '-')}: should be above 0")

    @property
    def servers(self) -> list[str]:
        """The addresses of the hub, in the order given."""
        return [server.strip() for server in self.server.split(",")]

    @property
    def quic_servers(self) -> list[str]:
        """The same over QUIC."""
        if self.quic_server:
            return [server.strip() for server in self.quic_server.split(",")]
        hosts = [urlsplit(server).netloc for server in self.servers]
        bare = [host if host.endswith("]") else host.rpartition(":")[0] or host for host in hosts]
        return list(dict.fromkeys(f"quic://{host}:{_QUIC_PORT}" for host in bare))

    @property
    def quic_open_seconds(self) -> float:
        """As `open_seconds`; shorter where WebSocket is dialled after it."""
        return min(_QUIC_TRY_SECONDS, self.open_seconds) if self.transport == "auto" else self.open_seconds

    def quic_address(self, server: str) -> tuple[str, int]:
        """Host and port of one of the servers."""
        host, _, port = server.removeprefix("quic://").rpartition(":")
        return host.strip("[]"), int(port)

    def quic_tls(self, node_id: str, round_trip_seconds: float) -> QuicConfiguration:
        """How a link of a node is set up: trusts only the hub's CA and shows the node's certificate.
        `round_trip_seconds` is assumed until the first is measured.

        Raises SettingsFault.
        """
        certificate, key = self.certificate_files(node_id)
        configuration = QuicConfiguration(
            alpn_protocols=[_PROTOCOL],
            cafile=str(self.ca),
            initial_rtt=round_trip_seconds,
            # The agent's own clock of silence is the authority.
            idle_timeout=self.silence_seconds + self.keepalive_seconds,
        )
        try:
            configuration.load_cert_chain(certificate, key)
        except (ValueError, TypeError, OSError) as error:
            raise SettingsFault(f"{certificate} or {key} cannot be used: {error}") from error
        return configuration

    def certificate_files(self, node_id: str) -> tuple[Path, Path]:
        """Certificate and key of a node."""
        certificate = self.certificate or Path(self.certificates or "") / "nodes" / f"{node_id}.crt"
        return certificate, self.key or certificate.with_name(f"{node_id}.key")

    def key_exposure(self, node_id: str) -> str:
        """What is wrong with who may read a node's private key, and the fix; "" if nothing is."""
        _, key = self.certificate_files(node_id)
        try:
            mode = stat.S_IMODE(key.stat().st_mode)
        except OSError:
            return ""
        if not mode & stat.S_IRWXO:
            return ""
        return f"everybody on this machine may read or change {key} (mode {mode:04o}): chmod 600 {key}"

    def url(self, server: str, node_id: str) -> str:
        """Where a node dials (docs/protocol.md), at one of the servers."""
        return f"{server}/{self.project_id}/{node_id}/events"

    def headers(self, node_id: str) -> dict[str, str]:
        """What a node says of itself with the upgrade."""
        return {
            "Node_id": node_id,
            "Project_id": self.project_id,
            "Connectionuse": "msg",
            # It reads no more than it takes in, and drops nothing.
            "Cloudhub-Window": "65536",
        }

    def tls(self, node_id: str) -> ssl.SSLContext:
        """A context that trusts only the hub's CA and shows the node's certificate. Raises SettingsFault."""
        certificate, key = self.certificate_files(node_id)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # The hub's CA may be another one's.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        for path in (self.ca, certificate, key):
            if not path.is_file():
                raise SettingsFault(
                    f"{path} does not exist; `python -m edge.certificates` makes certificates"
                )
        try:
            context.load_verify_locations(self.ca)
            context.load_cert_chain(certificate, key)
        except (ssl.SSLError, OSError) as error:
            raise SettingsFault(f"{self.ca}, {certificate} or {key} cannot be used: {error}") from error
        return context

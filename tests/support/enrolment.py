"""Enrolment beside a hub of `tests.support.hub`: its app, and clients that ask it for certificates."""

import asyncio
import http.client
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloudhub.v1 import enrolment_pb2 as pb
from cloudhub.v1.enrolment_pb2_grpc import EnrolmentAdminStub
from services.enrolment.app import EnrolmentApp, running_app
from services.enrolment.settings import EnrolmentSettings
from tests.support.certs import Issued, PrivateKey, TestAuthority
from tests.support.hub import RunningHub
from tests.support.processes import HOST


def request_for(
    node_id: str = "edge-1",
    *,
    key: PrivateKey | None = None,
    common_name: str | None = None,
    organizations: tuple[str, ...] = ("system:nodes",),
    more: tuple[x509.NameAttribute[str], ...] = (),
    extensions: tuple[x509.ExtensionType, ...] = (),
) -> bytes:
    """A signing request in DER form, good if nothing else is said."""
    name = f"system:node:{node_id}" if common_name is None else common_name
    subject = [
        *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, one) for one in organizations),
        *([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []),
        *more,
    ]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    key = key or ec.generate_private_key(ec.SECP256R1())
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    if algorithm is None and hasattr(key, "decrypt"):
        algorithm = hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


@dataclass(frozen=True)
class Answered:
    """What the service said."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def certificate(self) -> x509.Certificate:
        assert self.status == 200, (self.status, self.body)
        return x509.load_der_x509_certificate(self.body)


@dataclass(frozen=True)
class EnrolledHub:
    """A hub, its enrolment, its CA, and a folder for edges."""

    hub: RunningHub
    app: EnrolmentApp
    authority: TestAuthority
    folder: Path

    @property
    def server(self) -> str:
        """What an edge is told."""
        return f"https://localhost:{self.app.port}"

    async def admin(self) -> Any:
        """EnrolmentAdmin; its published type is that of blocking channels."""
        return EnrolmentAdminStub(await self.hub.channel("sessions"))

    async def token(self, pattern: str = "edge-*", **fields: Any) -> str:
        """A new join token."""
        return (await self.created(pattern, **fields)).join_token

    async def created(self, pattern: str = "edge-*", **fields: Any) -> pb.CreateTokenResponse:
        """A new token with what operators see of it."""
        request = pb.CreateTokenRequest(node_pattern=pattern, **fields)
        found: pb.CreateTokenResponse = await (await self.admin()).CreateToken(request, timeout=10)
        return found

    def context(self, shown: Issued | None = None) -> ssl.SSLContext:
        """A client that trusts the hub."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if shown:
            context.load_cert_chain(shown.certificate, shown.key)
        return context

    async def get(
        self,
        path: str,
        body: bytes = b"",
        *,
        shown: Issued | None = None,
        method: str = "GET",
        **headers: str,
    ) -> Answered:
        """One request; underscores in header names stand for hyphens."""

        def ask() -> Answered:
            connection = http.client.HTTPSConnection(
                "localhost", self.app.port, timeout=15, context=self.context(shown)
            )
            try:
                names = {name.replace("_", "-"): value for name, value in headers.items()}
                connection.request(method, path, body or None, names)
                response = connection.getresponse()
                return Answered(response.status, response.read(), dict(response.getheaders()))
            finally:
                connection.close()

        return await asyncio.to_thread(ask)

    async def edge_crt(
        self,
        token: str = "",
        node_id: str = "edge-1",
        body: bytes | None = None,
        *,
        shown: Issued | None = None,
    ) -> Answered:
        """Asks for a certificate with a whole join token, as an edge does with its second part."""
        headers = {"NodeName": node_id}
        if token:
            headers["Authorization"] = f"Bearer {token.partition('.')[2]}"
        return await self.get(
            "/edge.crt", request_for(node_id) if body is None else body, shown=shown, **headers
        )


@asynccontextmanager
async def running_enrolment(
    hub: RunningHub, authority: TestAuthority, **changes: Any
) -> AsyncIterator[EnrolmentApp]:
    """The enrolment service of a hub whose CA it has."""
    server = authority.issue("localhost", None, file="server")
    values: dict[str, Any] = {
        "listen": f"{HOST}:0",
        "grpc_listen": f"{HOST}:0",
        "metrics_listen": f"{HOST}:0",
        "sessions": ",".join(hub.address(part.name) for part in hub.registries),
        "certificate": server.certificate,
        "private_key": server.key,
        "client_ca": authority.certificate,
        "ca_certificate": authority.certificate,
        "ca_private_key": authority.key_file,
        "grpc_insecure_loopback": True,
        "requests_burst": 1000,
    }
    async with running_app(EnrolmentSettings(**(values | changes))) as app:
        yield app

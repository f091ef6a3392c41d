"""What a program is told when a server takes no connection."""

import socket
from pathlib import Path

from services.runtime.roles import Role
from services.runtime.rpc import RpcServer
from services.runtime.security import PLAINTEXT_LOOPBACK, MutualTls, Security
from tests.support.certs import TestAuthority


def operator(authority: TestAuthority) -> MutualTls:
    return authority.security(authority.program("ann", Role.OPERATOR))


async def explained(security: Security, caller: MutualTls) -> str:
    """What the caller finds out of a server with this security."""
    server = RpcServer("127.0.0.1:0", [], security)
    await server.start()
    try:
        return await caller.explain(server.address)
    finally:
        await server.stop(0)


async def test_nothing_is_wrong_with_a_server_that_takes_the_certificate(authority: TestAuthority) -> None:
    server = authority.security(authority.service())
    assert await explained(server, operator(authority)) == ""


async def test_a_server_without_the_name_of_services_is_not_trusted(authority: TestAuthority) -> None:
    """A publisher's certificate, or any of the CA, makes no service."""
    server = authority.security(authority.issue("localhost", Role.SERVICE.value))
    assert "its certificate is not taken here: Hostname mismatch" in await explained(
        server, operator(authority)
    )


async def test_a_server_of_another_ca_is_not_trusted(authority: TestAuthority, tmp_path: Path) -> None:
    other = TestAuthority(tmp_path / "other", "other")
    server = other.security(other.service())
    assert "its certificate is not taken here: unable to get local issuer" in await explained(
        server, operator(authority)
    )


async def test_a_server_without_tls_is_told(authority: TestAuthority) -> None:
    assert "the handshake failed" in await explained(PLAINTEXT_LOOPBACK, operator(authority))


async def test_a_port_that_nobody_has_is_told(authority: TestAuthority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    assert "no connection: Connect" in await operator(authority).explain(f"127.0.0.1:{port}")

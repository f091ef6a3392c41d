"""A CA of gRPC callers that is another CA's: servers and clients trust it, and none beside it."""

from pathlib import Path

import pytest

from services.runtime.roles import Role
from tests.security.test_callers import ADMIN, SERVERS, asked
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, request


@pytest.fixture
def root(tmp_path: Path) -> TestAuthority:
    return TestAuthority(tmp_path / "root", "root", path_length=1)


@pytest.fixture
def authority(tmp_path: Path, root: TestAuthority) -> TestAuthority:
    """The hub's CA."""
    return TestAuthority(tmp_path / "ca", "devices", parent=root)


@pytest.mark.parametrize("shows_chain", [False, True], ids=["alone", "with its chain"])
async def test_callers_of_it_are_served_by_every_service(
    hub: RunningHub, authority: TestAuthority, shows_chain: bool
) -> None:
    """And services call each other, or no link would open."""
    chain = authority.chain() if shows_chain else b""
    security = authority.security(authority.program("ann", Role.OPERATOR, chain=chain))
    for server in SERVERS:
        assert (await asked(hub.address(server), security, ADMIN[server]))[0] in ("OK", "NOT_FOUND")
        assert await security.explain(hub.address(server)) == ""
    async with hub.edge("edge-1") as edge:
        await hub.accept(request("edge-1"))
        await edge.next()


async def test_callers_of_another_ca_of_the_root_are_refused(
    hub: RunningHub, root: TestAuthority, tmp_path: Path, authority: TestAuthority
) -> None:
    office = TestAuthority(tmp_path / "office", "office", parent=root)
    intruder = authority.security(office.program("ann", Role.OPERATOR, chain=office.chain()))
    for server in SERVERS:
        answer = await asked(hub.address(server), intruder, ADMIN[server])
        assert answer[:2] == ("UNAUTHENTICATED", "CERTIFICATE_UNTRUSTED")
    # Nor is a server of it one of the hub.
    assert "unable to get" in await office.security(office.program("x")).explain(hub.address("sessions"))

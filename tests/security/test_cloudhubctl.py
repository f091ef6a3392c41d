"""The command line at a hub with TLS: certificates, roles, and what it says when they do not fit."""

import asyncio
import sys
from pathlib import Path

from services.runtime.roles import Role
from tests.support.certs import Issued, TestAuthority
from tests.support.hub import RunningHub
from tests.support.processes import ROOT, clean_environment


async def run(hub: RunningHub, shown: Issued | None, ca: Path, *command: str) -> tuple[int, str]:
    """Exit code, and all that was written."""
    tls = (*("--ca", str(ca), "--cert", str(shown.certificate)), "--key", str(shown.key)) if shown else ()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ctl", "--timeout", "5", *tls),
        *("--dispatcher", hub.address("dispatcher"), "--sessions", hub.address("sessions")),
        *command,
        cwd=ROOT,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_a_certificate_of_the_role_is_served_and_another_is_told(
    hub: RunningHub, authority: TestAuthority
) -> None:
    operator = authority.program("ann", Role.OPERATOR)
    publisher = authority.program("shop", Role.PUBLISHER)
    publish = ("publish", "-f", "examples/manifests/store-prices.yaml", "--node", "edge-1", "--unknown")

    assert (await run(hub, operator, authority.certificate, "instances"))[0] == 0
    assert (await run(hub, publisher, authority.certificate, *publish))[0] == 0
    forbidden, told = await run(hub, operator, authority.certificate, *publish)
    assert forbidden == 1
    assert "give a certificate of another role" in told


async def test_a_publisher_waits_for_its_own_messages(hub: RunningHub, authority: TestAuthority) -> None:
    """And is told of nobody else's: an operator may look at everything, a publisher at what it published."""
    publisher = authority.program("shop", Role.PUBLISHER)
    file = "examples/manifests/store-prices.yaml"
    async with hub.fleet("edge-1"):
        waited, told = await run(
            hub, publisher, authority.certificate, "publish", "-f", file, "--node", "edge-1", "--wait"
        )
        looked, refused = await run(hub, publisher, authority.certificate, "inspect", "edge-1")

    assert (waited, "5 accepted, 5 acknowledged" in told) == (0, True), told
    assert (looked, "give a certificate of another role" in refused) == (1, True)


async def test_certificates_that_are_not_taken_by_one_side_or_the_other_are_told(
    hub: RunningHub, authority: TestAuthority, tmp_path: Path
) -> None:
    other = TestAuthority(tmp_path / "other", "other")

    stranger, told = await run(hub, other.program("ann", Role.OPERATOR), authority.certificate, "instances")
    distrusted, distrust = await run(
        hub, authority.program("ann", Role.OPERATOR), other.certificate, "instances"
    )
    plain, hint = await run(hub, None, authority.certificate, "instances")

    assert (stranger, distrusted, plain) == (1, 3, 3)
    assert "was issued by CN=other, which is not trusted here" in told
    assert "give the hub a certificate that it takes" in told
    assert "its certificate is not taken here" in distrust
    assert "perhaps it wants TLS: --ca, --cert and --key" in hint

"""Enrolment by a CA that is another CA's: agents join with it and renew, by its certificate alone."""

import asyncio
from pathlib import Path
from typing import Literal

import pytest
from cryptography import x509

from edge.enrolment import Enroller
from tests.enrolment.test_agent import fleet_of, renewals
from tests.support.certs import TestAuthority
from tests.support.enrolment import EnrolledHub


@pytest.fixture
def root(tmp_path: Path) -> TestAuthority:
    return TestAuthority(tmp_path / "root", "root", path_length=1)


@pytest.fixture
def authority(tmp_path: Path, root: TestAuthority) -> TestAuthority:
    """The hub's CA: signs for nodes, and is all that hub and agents are given."""
    return TestAuthority(tmp_path / "ca", "devices", parent=root)


@pytest.mark.parametrize("transport", ["websocket", "quic"])
async def test_an_agent_joins_links_and_renews(
    enrolled: EnrolledHub, transport: Literal["websocket", "quic"]
) -> None:
    kept = renewals(enrolled, await enrolled.token())
    async with fleet_of(enrolled, kept, transport) as fleet:
        assert fleet.links == 1
    first = x509.load_pem_x509_certificate((enrolled.folder / "edge/nodes/edge-1.crt").read_bytes())
    assert first.issuer.rfc4514_string() == "CN=devices"
    second = await asyncio.to_thread(Enroller(enrolled.server, enrolled.folder / "edge").renew, "edge-1")
    assert second.serial_number != first.serial_number


async def test_a_certificate_of_another_ca_of_the_root_proves_nothing(
    enrolled: EnrolledHub, root: TestAuthority, tmp_path: Path
) -> None:
    office = TestAuthority(tmp_path / "office", "office", parent=root)
    intruder = office.issue("system:node:edge-1", chain=office.chain())
    with pytest.raises(OSError):
        await enrolled.edge_crt(shown=intruder)

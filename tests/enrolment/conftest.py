"""A hub with enrolment: one of each service, and who asks it for certificates."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.certs import TestAuthority
from tests.support.enrolment import EnrolledHub, running_enrolment
from tests.support.hub import running_hub


@pytest.fixture
def authority(tmp_path: Path) -> TestAuthority:
    """The hub's CA."""
    return TestAuthority(tmp_path / "ca")


@pytest.fixture
async def enrolled(tmp_path: Path, authority: TestAuthority) -> AsyncIterator[EnrolledHub]:
    """The hub, its enrolment and its operator."""
    changes = {"enrolment_ca": authority.certificate}
    async with (
        running_hub(tmp_path, authority, sessions=changes) as hub,
        running_enrolment(hub, authority) as app,
    ):
        yield EnrolledHub(hub, app, authority, tmp_path)

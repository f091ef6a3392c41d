"""What the tests of certificates between programs and services share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, running_hub


@pytest.fixture
def authority(tmp_path: Path) -> TestAuthority:
    """The hub's CA, of edges and programs alike: roles tell them apart."""
    return TestAuthority(tmp_path / "ca")


@pytest.fixture
async def hub(tmp_path: Path, authority: TestAuthority) -> AsyncIterator[RunningHub]:
    """One of each service, with TLS."""
    async with running_hub(tmp_path, authority, tls=True) as running:
        yield running

"""A hub with enrolment: one of each service, and who asks it for certificates."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tests.support.certs import TestAuthority
from tests.support.enrolment import EnrolledHub, running_enrolment
from tests.support.hub import running_hub


@pytest.fixture
def authority(tmp_path: Path) -> TestAuthority:
    """The hub's CA."""
    return TestAuthority(tmp_path / "ca")


@asynccontextmanager
async def _enrolled_hub(folder: Path, authority: TestAuthority) -> AsyncIterator[EnrolledHub]:
    changes = {"enrolment_ca": authority.certificate}
    async with (
        running_hub(folder, authority, sessions=changes) as hub,
        running_enrolment(hub, authority) as app,
    ):
        yield EnrolledHub(hub, app, authority, folder)


@pytest.fixture
async def enrolled(tmp_path: Path, authority: TestAuthority) -> AsyncIterator[EnrolledHub]:
    """The hub, its enrolment and its operator."""
    async with _enrolled_hub(tmp_path, authority) as hub:
        yield hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EnrolledHub]:
    """The same, for tests that leave nothing of it changed for others."""
    folder = tmp_path_factory.mktemp("enrolled")
    async with _enrolled_hub(folder, TestAuthority(folder / "ca")) as hub:
        yield hub


@pytest.fixture
def no_secret_in_logs(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """A test that asks for this may log no token: JWTs begin alike."""
    with capture_logs() as logs:
        yield
    told = capfd.readouterr()
    assert "eyJ" not in repr(logs) + told.out + told.err

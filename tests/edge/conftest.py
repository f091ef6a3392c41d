"""Certificates, a cloud side and fleets for the edge's tests."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edge.certificates import create_node_certificates, create_server_certificate
from edge.settings import EdgeSettings
from tests.support.cloud_side import CloudSide

NODES = [f"edge-{number}" for number in range(1, 6)]
MakeSettings = Callable[..., EdgeSettings]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    create_server_certificate(folder)
    create_node_certificates(folder, NODES)
    return folder


@pytest.fixture
async def cloud(certificates: Path) -> AsyncIterator[CloudSide]:
    async with CloudSide(certificates) as side:
        yield side


@pytest.fixture
def make_settings(certificates: Path, tmp_path: Path, cloud: CloudSide) -> MakeSettings:
    def make(**changes: Any) -> EdgeSettings:
        values: dict[str, Any] = {
            "server": cloud.url,
            "ca": certificates / "ca.crt",
            "certificates": certificates,
            "database": tmp_path / "edge.db",
            "first_delay_seconds": 0.01,
            "most_delay_seconds": 0.05,
            **changes,
        }
        return EdgeSettings(**values)

    return make

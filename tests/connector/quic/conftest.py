"""Fixtures: edge nodes that come over QUIC to the connector of the fixtures above."""

import pytest

from services.connector.app import ConnectorApp
from tests.connector.conftest import (  # noqa: F401 - the hook and fixtures of the folder above
    pytest_asyncio_loop_factories,
)
from tests.support.certs import TestAuthority
from tests.support.quic_peer import QuicPeers


@pytest.fixture
def quic_peers(authority: TestAuthority, app: ConnectorApp) -> QuicPeers:
    """Edge nodes of the connector."""
    return QuicPeers(authority, app.quic_port)

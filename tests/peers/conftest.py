"""Clients of other QUIC stacks, and the CA of their hub."""

import pytest

from tests.support.certs import TestAuthority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    """The hub's CA."""
    return TestAuthority(tmp_path_factory.mktemp("ca"))

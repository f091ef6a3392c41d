"""One authority for all tests of replicas."""

import pytest

from tests.support.certs import TestAuthority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    """Signs the server's and all edges' certificates."""
    return TestAuthority(tmp_path_factory.mktemp("authority"))

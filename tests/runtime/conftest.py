"""What the tests of the runtime share."""

import pytest

from tests.support.certs import TestAuthority


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    """A CA of its own for each test."""
    return TestAuthority(tmp_path_factory.mktemp("ca"))

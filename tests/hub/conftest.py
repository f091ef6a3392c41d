"""What the tests of a whole hub share."""

from typing import Any

import pytest
from sqlalchemy import create_engine

from tests.support.certs import TestAuthority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    """The hub's CA."""
    return TestAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def impatient_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases give up waiting for another program's lock after 0.2 s instead of 5 s."""

    def impatient(url: str, *, connect_args: dict[str, Any], **options: Any) -> Any:
        return create_engine(url, connect_args={**connect_args, "timeout": 0.2}, **options)

    monkeypatch.setattr("services.runtime.store_sqlite.create_engine", impatient)

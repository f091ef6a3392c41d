"""What every test shares."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop

from tests.support.figures import figures, pytest_terminal_summary
from tests.support.postgres import Databases, running_databases

__all__ = ["figures", "pytest_terminal_summary"]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that the services run on: its transports differ from asyncio's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """PostgreSQL: one server for the whole run, started when the first test asks for it."""
    with running_databases() as running:
        yield running

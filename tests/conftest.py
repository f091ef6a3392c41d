"""What every test shares."""

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that the services run on: its transports differ from asyncio's."""
    return {"uvloop": uvloop.new_event_loop}

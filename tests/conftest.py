"""What every test shares."""

import asyncio
from collections.abc import Callable, Generator, Iterator

import pytest
import uvloop
from _pytest.unittest import TestCaseFunction

from tests.support.figures import figures, pytest_terminal_summary
from tests.support.postgres import Databases, running_databases

__all__ = ["figures", "pytest_terminal_summary"]

# The services run as processes of their own there, or not at all; or as whole hubs in this one, which run the
# lines again that the services' own tests run.
_ELSEWHERE = {
    *("bench", "chaos", "ctl", "demo", "deploy", "docs", "e2e", "edge", "fuzz", "lab", "metrics", "soak"),
    *("tools", "tracing"),
    *("hub", "replicas", "security"),
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measuring coverage doubles the time of what is measured: state machines run the same lines thousands of
    times, and others of the tests have run them before. (`no_cover` would go on measuring their fixtures.)"""
    plugin = item.config.pluginmanager.getplugin("_cov")
    controller = plugin.cov_controller if plugin else None
    folder = item.path.relative_to(item.config.rootpath).parts[1]
    # What a store does on SQLite as well is measured there.
    again = "postgresql" in item.name and folder != "runtime"
    if controller is None or not (again or folder in _ELSEWHERE or isinstance(item, TestCaseFunction)):
        return (yield)
    controller.pause()
    try:
        return (yield)
    finally:
        controller.resume()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that the services run on: its transports differ from asyncio's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """PostgreSQL: one server for the whole run, started when the first test asks for it."""
    with running_databases() as running:
        yield running

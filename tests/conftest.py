"""What every test shares."""

import asyncio
import os
from collections.abc import Callable, Generator, Iterator

import pytest
import uvloop
from _pytest.unittest import TestCaseFunction
from hypothesis import HealthCheck, settings
from sqlalchemy import Connection, inspect

from services.runtime import migrations, store
from services.runtime.migrations import Schema, version_of
from tests.support.figures import figures, pytest_terminal_summary
from tests.support.postgres import Databases, running_databases
from tests.support.statements import compiled_once

__all__ = ["figures", "pytest_terminal_summary"]

# How long making an input takes says nothing of what is tested: on a fresh clone the first text of a process
# makes Hypothesis' table of characters, seven seconds on a busy machine.
settings.register_profile("hub", settings.default, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hub")

_HELD = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
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
    if controller is None or item.get_closest_marker("no_cover"):
        return (yield)
    folder = item.path.relative_to(item.config.rootpath).parts[1]
    # What a store does on SQLite as well is measured there.
    again = "postgresql" in item.name and folder != "runtime"
    if not (again or folder in _ELSEWHERE or isinstance(item, TestCaseFunction)):
        return (yield)
    controller.pause()
    try:
        return (yield)
    finally:
        controller.resume()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that the services run on: its transports differ from asyncio's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def _migrated_once() -> Iterator[None]:
    """What migrations make of a new SQLite file is made of the next ones by the statements it then holds:
    hundreds of tests begin with such a file, and those of the migrations alone ask how it came to be."""
    made: dict[str, list[str]] = {}

    def statements(connection: Connection, schema: Schema) -> list[str]:
        held = connection.exec_driver_sql(_HELD)
        version = version_of(connection, schema)
        return [*held.scalars(), f"INSERT INTO {schema.version_table} VALUES ('{version}')"]

    def upgrade(connection: Connection, schema: Schema, name: str) -> None:
        is_empty = connection.dialect.name == "sqlite" and not inspect(connection).get_table_names()
        if not is_empty or "test_migrations" in os.environ.get("PYTEST_CURRENT_TEST", ""):
            migrations.upgrade(connection, schema, name)
        elif schema.service not in made:
            migrations.upgrade(connection, schema, name)
            made[schema.service] = statements(connection, schema)
        else:
            for statement in made[schema.service]:
                connection.exec_driver_sql(statement)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "upgrade", upgrade)
        yield


@pytest.fixture(scope="session", autouse=True)
def _compiled_once() -> Iterator[None]:
    with compiled_once():
        yield


@pytest.fixture(scope="session")
def _databases() -> Iterator[Databases]:
    """PostgreSQL: one server for the whole run, started when the first test asks for it."""
    with running_databases() as running:
        yield running


@pytest.fixture
def databases(_databases: Databases) -> Iterator[Databases]:
    """Databases for one test."""
    yield _databases
    _databases.take_back()

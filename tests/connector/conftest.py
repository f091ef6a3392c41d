"""Fixtures: a CA, a scripted dispatcher, a connector in process and peers that link to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from services.connector.app import ConnectorApp, running_app
from services.connector.settings import ConnectorSettings
from services.runtime.tracing import Tracing
from tests.support.certs import Issued, TestAuthority
from tests.support.edge_peer import EdgePeers
from tests.support.link_dispatcher import LinkDispatcher

MakeSettings = Callable[..., ConnectorSettings]
StartApp = Callable[..., AbstractAsyncContextManager[ConnectorApp]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Write limits and closes are tested on the loop that the service runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    """The hub's CA."""
    return TestAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def server_certificate(authority: TestAuthority) -> Issued:
    """The connector's certificate."""
    return authority.issue("localhost", None, file="server")


@pytest.fixture
def make_settings(authority: TestAuthority, server_certificate: Issued) -> MakeSettings:
    """Settings with free ports; keywords override."""

    def make(dispatchers: str, **changes: Any) -> ConnectorSettings:
        values: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "quic_listen": "127.0.0.1:0",
            "grpc_listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "grpc_insecure_loopback": True,
            "dispatchers": dispatchers,
            "certificate": server_certificate.certificate,
            "private_key": server_certificate.key,
            "client_ca": authority.certificate,
            "drain_links_per_second": 10_000.0,
            "shutdown_seconds": 5.0,
            "close_seconds": 1.0,
            "name": "connector-test",
        }
        return ConnectorSettings(**(values | changes))

    return make


@pytest.fixture
async def dispatcher() -> AsyncIterator[LinkDispatcher]:
    """A dispatcher that admits everything."""
    async with LinkDispatcher().running() as running:
        yield running


@pytest.fixture
def start_app(make_settings: MakeSettings, dispatcher: LinkDispatcher) -> StartApp:
    """Starts a connector attached to the dispatcher; keywords change its settings."""

    @asynccontextmanager
    async def start(tracing: Tracing | None = None, **changes: Any) -> AsyncIterator[ConnectorApp]:
        settings = make_settings(dispatcher.address, **changes)
        async with running_app(settings, tracing=tracing or Tracing(None, "connector")) as app:
            await dispatcher.until(lambda: dispatcher.streams > 0)
            await until_attached(app)
            yield app

    return start


async def until_attached(app: ConnectorApp, count: int = 1, seconds: float = 10.0) -> None:
    """Returns when that many dispatchers are attached."""
    await poll(lambda: app.dispatchers.attached == count, seconds)


async def poll(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Returns when the condition holds: for state of real sockets that tells nobody when it changes."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def app(start_app: StartApp) -> AsyncIterator[ConnectorApp]:
    """A connector with default settings."""
    async with start_app() as running:
        yield running


@pytest.fixture
def peers(authority: TestAuthority, app: ConnectorApp) -> EdgePeers:
    """Edge nodes of that connector."""
    return EdgePeers(authority, app.edge_port)


def metric(app: ConnectorApp, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels, whatever others they have; 0 if there are none."""
    return sum(
        sample.value
        for family in app.metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"cloudhub_connector_{name}" and labels.items() <= sample.labels.items()
    )


def fixture_path(name: str) -> Path:
    """A file of tests/fixtures."""
    return Path(__file__).parent.parent / "fixtures" / name

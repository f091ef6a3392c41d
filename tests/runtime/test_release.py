"""Which release a process is: `--version`, the first line of its log, a metric."""

import tomllib
from pathlib import Path

import pytest
import typer
from prometheus_client import CollectorRegistry
from pydantic_settings import BaseSettings
from typer.testing import CliRunner

from ctl.app import app as ctl
from edge.__main__ import run as run_edge
from services.connector.settings import ConnectorSettings
from services.dispatcher.settings import DispatcherMigrationSettings, DispatcherSettings
from services.enrolment.settings import EnrolmentSettings
from services.runtime.metrics import MetricsEndpoint
from services.runtime.release import release
from services.runtime.settings import load_settings
from services.sessions.settings import SessionsSettings

edge = typer.Typer()
edge.command()(run_edge)
PROJECT = Path(__file__).parent.parent.parent / "pyproject.toml"


def test_the_release_is_that_of_the_project() -> None:
    assert release() == tomllib.loads(PROJECT.read_text())["project"]["version"]


@pytest.mark.parametrize(
    "kind",
    [
        ConnectorSettings,
        DispatcherSettings,
        DispatcherMigrationSettings,
        EnrolmentSettings,
        SessionsSettings,
    ],
)
def test_every_service_tells_its_release(
    kind: type[BaseSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where required settings are missing."""
    with pytest.raises(SystemExit) as ended:
        load_settings(kind, "cloudhub-x", ["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"cloudhub-x {release()}\n"


@pytest.mark.parametrize(("program", "name"), [(ctl, "cloudhubctl"), (edge, "cloudhub-edge")])
def test_the_command_line_and_the_edge_agent_do(program: typer.Typer, name: str) -> None:
    told = CliRunner().invoke(program, ["--version"])

    assert (told.exit_code, told.output) == (0, f"{name} {release()}\n")


async def test_the_release_is_a_metric_of_every_endpoint() -> None:
    registry = CollectorRegistry()
    for _ in range(2):  # a second endpoint of the same registry counts it once
        endpoint = await MetricsEndpoint.serving("127.0.0.1:0", registry)
        await endpoint.close()

    assert registry.get_sample_value("cloudhub_build_info", {"version": release()}) == 1

"""A Prometheus of its own for tests: the real one, with the alerts of deploy/."""

import asyncio
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.manifests import MONITORING, documents
from tests.support.processes import HOST, free_ports
from tests.support.tools import answers, ask, program, running

WAIT_SECONDS = 30.0
# Of scrapes and of evaluations.
EVERY = "500ms"


class Prometheus:
    """A running Prometheus: what it answers."""

    def __init__(self, port: int) -> None:
        self.url = f"http://{HOST}:{port}"

    async def api(self, path: str, **parameters: str) -> Any:
        """The data of an answer of /api/v1. Raises AssertionError with its error."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        return (await ask(f"{self.url}/api/v1/{path}{query}"))["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an expression has now."""
        found: list[dict[str, Any]] = (await self.api("query", query=expression))["result"]
        return found

    async def until(self, expression: str, what: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Returns when the samples of the expression are as wanted."""
        found: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                # Prometheus can only be asked.
                while not what(found := await self.query(expression)):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"{expression}: {found}") from None

    async def alert(self, name: str) -> dict[str, Any]:
        """The alert, once it fires."""
        found: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    found = (await self.api("alerts"))["alerts"]
                    for one in found:
                        if one["labels"]["alertname"] == name and one["state"] == "firing":
                            return one
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"{name} does not fire; {found}") from None


@asynccontextmanager
async def running_prometheus(folder: Path, targets: Mapping[str, int]) -> AsyncIterator[Prometheus]:
    """Prometheus scraping the ports of `targets` as it would the pods of these names in a cluster."""
    binary = program("prometheus", "prometheus")
    (port,) = free_ports(1)
    (rule,) = documents((MONITORING / "alerts.yaml").read_text())
    (folder / "alerts.yaml").write_text(yaml.safe_dump(rule["spec"]))
    jobs = [
        {
            "job_name": name,
            "static_configs": [
                {
                    "targets": [f"{HOST}:{target}"],
                    "labels": {"namespace": "cloudhub", "pod": f"cloudhub-{name}-0"},
                }
            ],
        }
        for name, target in targets.items()
    ]
    config = {
        "global": {"scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": jobs,
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    command: list[str | Path] = [
        binary,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    async with running(command, folder / "prometheus.log", answers(f"http://{HOST}:{port}/-/ready")):
        yield Prometheus(port)

"""`make e2e`: each scenario in a lab of its own, and a table of what they measured at the end."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from tests.lab import stock
from tests.lab.namespaces import missing
from tests.lab.network import Lab, running_lab
from tests.lab.scenario import Scenario, running_scenario
from tests.lab.table import Row, print_table

_ROW = "weak network row"
_CACHED_ROWS = "weak_networks/rows"
_missing = cache(missing)
FOLDER = Path(__file__).parent


class Stage:
    """Where a test plays its scenario."""

    def __init__(self, lab: Lab, data: Path, record: Callable[[Row], None]) -> None:
        self.lab = lab
        self._data = data
        self._record = record

    def scenario(
        self, title: str, edges: dict[str, int], **settings: Any
    ) -> AbstractAsyncContextManager[Scenario]:
        """As `running_scenario`, which says what the settings are; its row goes into the table."""
        return running_scenario(self.lab, self._data, title, edges, self._record, **settings)


@pytest.fixture
def _turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Scenarios run side by side, except those that are marked `alone`."""
    how = fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH
    folder = Path(tempfile.gettempdir()) / "cloudhub-lab"
    folder.mkdir(exist_ok=True)
    with (folder / "turn").open("a") as turn:
        # Whoever wants to be alone waits in the gate, so that no others come in before.
        with (folder / "gate").open("a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(turn, how)
        yield


@pytest.fixture
def stage(_turn: None, tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Stage]:
    """A lab for one scenario; skipped where there can be none, unless that is meant to be a failure."""
    reason = _missing()
    if reason and os.environ.get("CI"):
        pytest.fail(f"no network lab here: {reason}")
    if reason:
        pytest.skip(f"no network lab here: {reason}")
    with running_lab() as lab:
        yield Stage(lab, tmp_path, lambda row: record_property(_ROW, msgspec.json.encode(row).decode()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Doubles of stock edges leave out what no stock edge can play."""
    if not stock.STOCK:
        return
    for item in items:
        if item.path.parent == FOLDER and (reason := stock.left_out(f"{item.path.name}::{item.name}")):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_addoption(parser: pytest.Parser) -> None:
    """For runs that belong together: some scenarios side by side, then others alone, then some again."""
    parser.addoption("--earlier-rows", action="store_true", help="show the last run's rows as well")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table, of all workers."""
    found = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == _ROW
    ]
    assert config.cache is not None
    earlier = config.cache.get(_CACHED_ROWS, []) if config.getoption("earlier_rows", default=False) else []
    rows = {row.scenario: row for row in (msgspec.json.decode(one, type=Row) for one in (*earlier, *found))}
    config.cache.set(_CACHED_ROWS, [msgspec.json.encode(row).decode() for row in rows.values()])
    if rows:
        print_table(Console(width=160), rows.values())

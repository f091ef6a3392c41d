"""Figures that a test measured, shown behind the results of the run."""

from collections.abc import Callable

import pytest

Figures = Callable[[str], None]
_PROPERTY = "figures"


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """Call it with a line of figures; it is shown at the end of the run, also if the test fails."""
    return lambda line: record_property(_PROPERTY, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows the lines under the names of their tests."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
    ]
    shown = {
        report.nodeid: [str(value) for name, value in report.user_properties if name == _PROPERTY]
        for report in reports
    }
    if any(shown.values()):
        terminalreporter.section("figures")
    for test, lines in sorted(shown.items()):
        if lines:
            terminalreporter.write_line(test)
            for line in lines:
                terminalreporter.write_line(f"    {line}")

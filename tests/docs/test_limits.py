"""docs/limits.md holds against the code: flags with their defaults, counters, settings that are bounds."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.connector.settings import ConnectorSettings
from services.dispatcher.settings import DispatcherSettings
from services.enrolment.settings import EnrolmentSettings
from services.runtime.settings import ServiceSettings
from services.sessions.settings import SessionsSettings
from tests.metrics.declared import declared_metrics

PAGE = Path(__file__).parent.parent.parent / "docs" / "limits.md"
SETTINGS: dict[str, type[ServiceSettings]] = {
    "connector": ConnectorSettings,
    "dispatcher": DispatcherSettings,
    "enrolment": EnrolmentSettings,
    "sessions": SessionsSettings,
}
AGENT = "The edge agent of this repository"
COLUMNS = 6
_FLAG = re.compile(r"`--([a-z-]+)`")
_SERVICE = re.compile(r"(?:of |\()(?:the )?(connector|dispatcher|enrolment|sessions|each service)\b")
_COUNTER = re.compile(r"`(cloudhub_[a-z0-9_*]+)")
_IS_BOUND = re.compile(r"(^|_)(most|max|burst|window|limit)(_(?!retry)|$)")
# Of a default that is told by another one.
_DERIVED = ("'s + ", "times as many")


@dataclass(frozen=True, slots=True)
class Row:
    """One bound."""

    section: str
    bound: str
    default: str
    setting: str
    per: str
    at_it: str
    counter: str

    def named(self) -> list[tuple[str, str]]:
        """Services and fields of the settings in its column."""
        said = _SERVICE.findall(self.setting)
        of = list(SETTINGS) if "each service" in said else said
        fields = [flag.replace("-", "_") for flag in _FLAG.findall(self.setting)]
        return [
            (service, field) for service in of for field in fields if field in SETTINGS[service].model_fields
        ]


def rows() -> list[Row]:
    found, section = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith(("| bound |", "| --- |")):
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            assert len(cells) == COLUMNS, line
            found.append(Row(section, *cells))
    return found


ROWS = rows()
OF_SERVICES = [row for row in ROWS if row.section != AGENT]


def spelled(name: str, value: float) -> set[str]:
    """How a default may be written."""
    texts = {f"{value:g}", f"{value:.0f}", f"{value:,.0f}".replace(",", " ")}
    if "bytes" in name:
        texts |= {f"{value / 1024**power:g} {unit}" for power, unit in ((1, "KiB"), (2, "MiB"), (3, "GiB"))}
    if "seconds" in name:
        texts |= {f"{value / 86_400:g} day", f"{value / 3600:g} h", f"{value / 60:g} min"}
    return texts


def test_the_table_is_there_and_says_what_happens() -> None:
    assert len(ROWS) > 100
    assert not [row for row in ROWS if not all((row.bound, row.default, row.setting, row.per, row.counter))]


@pytest.mark.parametrize("row", OF_SERVICES, ids=lambda row: row.bound[:50])
def test_the_settings_of_a_bound_exist_with_their_default(row: Row) -> None:
    flags = _FLAG.findall(row.setting)
    named = row.named()
    assert len({field for _, field in named}) == len(set(flags)), f"no such setting: {row.setting}"
    for service, field in named:
        default = SETTINGS[service].model_fields[field].default
        if isinstance(default, int | float) and not any(how in row.default for how in _DERIVED):
            told = re.sub(r"\s+", " ", f"{row.bound} {row.default}")
            assert any(text in told for text in spelled(field, default)), (row.default, field, default)


def test_every_counter_is_one_that_a_service_has() -> None:
    declared = {name for service in SETTINGS for name in declared_metrics(service)}
    unknown = set()
    for row in OF_SERVICES:
        for name in _COUNTER.findall(row.counter):
            wanted = re.compile(re.escape(name).replace(r"\*", "[a-z]+") + "(_seconds|_count|_sum)?")
            if not any(wanted.fullmatch(one) for one in declared):
                unknown.add(name)
    assert unknown == set()


@pytest.mark.parametrize("service", ["connector", "sessions"])
def test_every_setting_that_is_a_bound_is_in_the_table(service: str) -> None:
    told = {field for row in OF_SERVICES for of, field in row.named() if of == service}
    bounds = {name for name in SETTINGS[service].model_fields if _IS_BOUND.search(name)}
    assert bounds - told == set()

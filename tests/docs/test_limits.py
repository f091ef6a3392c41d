"""docs/limits.md holds against the code: settings, constants, counters, collections, tables and files."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import MetaData

import edge.__main__
import edge.store
from services.connector.settings import ConnectorSettings
from services.dispatcher.outbox.schema import metadata as dispatcher_tables
from services.dispatcher.settings import DispatcherSettings
from services.enrolment.settings import EnrolmentSettings
from services.runtime.settings import ServiceSettings
from services.sessions.schema import metadata as sessions_tables
from services.sessions.settings import SessionsSettings
from tests.docs import bounds_in_code
from tests.metrics.declared import declared_metrics

PAGE = Path(__file__).parent.parent.parent / "docs" / "limits.md"
SETTINGS: dict[str, type[ServiceSettings]] = {
    "connector": ConnectorSettings,
    "dispatcher": DispatcherSettings,
    "enrolment": EnrolmentSettings,
    "sessions": SessionsSettings,
}
AGENT = "The edge agent of this repository"
COLLECTIONS, TABLES, FILES = "Collections in memory", "Tables of the databases", "Files"
NOTICED = "What others notice"
HEADS = {COLLECTIONS: 3, TABLES: 4, FILES: 3, NOTICED: 5}
_FLAG = re.compile(r"`--([a-z-]+)`")
_SERVICE = re.compile(r"(?:of |\()(?:the )?(connector|dispatcher|enrolment|sessions|each service|agent)\b")
_COUNTER = re.compile(r"`(cloudhub_[a-z0-9_*]+)")
_NAME = re.compile(r"`((?:connector|dispatcher|enrolment|sessions|runtime|edge)\.[\w.\[\]]+)`")
_TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
# Of a default that is told by another one.
_DERIVED = ("'s + ", "times as many")

# Rows without a test.
MAX_UNTESTED = 3

# Named like bounds, and none. The reason is what they are.
NO_BOUNDS = {
    "connector.quic.connection._MOST_FRAME_BYTES": "size of a field of QUIC's",
    "connector.quic.connection._MOST_INITIAL_RTT": "first guess of a round trip",
    "connector.quic.connection._MOST_RESET_BYTES": "size of a packet of QUIC's",
    "connector.quic.ends._MOST_CODE": "what a field holds",
    "connector.quic.timer._MOST_LATE_SECONDS": "a timer that is late waits for what is in the socket",
    "dispatcher.admin._MOST_TIMES": "what a field holds",
    "dispatcher.node_notices.MAX_STORED_VERSION": "what an edge's database holds",
    "dispatcher.openings.MOST_LINK": "what a column holds",
    "dispatcher.retention.UNKNOWN_KEPT_SECONDS": "told with the nodes that never connected",
    "dispatcher.upstream.parcel.MAX_GROWTH_BYTES": "below it a message's size is not looked at",
    "dispatcher.upstream.subscriber.TURN_PART": "a half, told in words",
    "dispatcher.upstream.upstream.LOOKS_PER_TIME": "how often is looked",
    "edge.renewal._MOST_DELAY_SECONDS": "pause before the next attempt",
    "edge.renewal._MOST_REFUSAL_SECONDS": "pause before the next attempt",
    "edge.renewal._RENEWED_AT_SHARE": "when a certificate is renewed",
    "edge.transport.MOST_ROUND_TRIP_SECONDS": "first guess of a round trip",
    "edge.transport._MOST_PAUSE_SECONDS": "pause before the next attempt",
    "edge.node._TOO_LARGE": "a close code",
    "enrolment.authority._CLOCK_SKEW_SHARE": "tolerance of clocks",
    "runtime.database_url._MOST_PORT": "the largest port",
    "runtime.names._MOST_NAME_IN_ID_CHARS": "part of a process's own id",
    "runtime.openings.OpeningLimits.hurried": "told with the time of an opening",
    "runtime.revoked_list.MAX_SERIAL_DIGITS": "size of a serial number (RFC 5280)",
    "runtime.secure_port._MOST_NAME_BYTES": "size of a socket's path",
    "runtime.secure_port._MOST_PATH_BYTES": "size of a socket's path",
    "runtime.settings._MOST_NUMBER": "what a setting may be",
    "runtime.tls_front._TURN_SECONDS": "how often is looked",
    "sessions.reaper._TICKS_PER_BEAT": "how often is looked",
    "sessions.reaper._TICKS_PER_LEASE": "how often is looked",
    "sessions.reaper._TICKS_PER_TRIM": "how often is looked",
    "sessions.requests.MOST_INTEGER": "what a column holds",
}
# Their fields are filled from settings, whose rows tell the defaults; other fields of them are named.
FROM_SETTINGS = {
    "connector.connections.ConnectionLimits": None,
    "connector.link.LinkLimits": None,
    "dispatcher.inflight.Window": None,
    "dispatcher.outbox.quotas.Quotas": None,
    "dispatcher.publication.PublishLimits": None,
    "dispatcher.upstream.room.Bounds": None,
    "dispatcher.policy.PolicySettings": {
        "ack_factor",
        "ack_most_seconds",
        "ack_seconds",
        "held_bytes",
        "jitter",
        "max_cut_links",
        "most_attempts",
        "window_bytes",
        "window_messages",
    },
    "dispatcher.upstream.settings.UpstreamSettings": {
        "max_node_upload_bytes",
        "max_node_upload_rows",
        "max_subscriptions",
        "max_upload_bytes",
        "max_upload_rows",
        "subscriber_ack_seconds",
    },
    "runtime.caller_shares.CallerLimits": {
        "max_calls_per_caller",
        "max_connections",
        "max_connections_per_caller",
        "max_request_bytes",
    },
    "sessions.limits.Limits": None,
}
# Numbers that bound nothing.
NO_BOUND_SETTINGS = {
    ("connector", "retry_after_seconds"),  # advice to an edge
    ("sessions", "limit_retry_seconds"),  # advice to an edge
    ("enrolment", "warning_seconds"),  # when a warning is logged
}


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
    test: str

    def named(self) -> list[tuple[str, str]]:
        """Services and fields of the settings in its column."""
        said = _SERVICE.findall(self.setting)
        of = list(SETTINGS) if "each service" in said else [one for one in said if one in SETTINGS]
        fields = [flag.replace("-", "_") for flag in _FLAG.findall(self.setting)]
        return [
            (service, field) for service in of for field in fields if field in SETTINGS[service].model_fields
        ]

    def constants(self) -> list[str]:
        """Constants of the code in its column."""
        return _NAME.findall(self.setting)

    def shows(self, texts: set[str]) -> bool:
        """Whether its words show one of these, as a number of its own."""
        told = re.sub(r"\s+", " ", "; ".join((self.bound, self.default, self.per, self.at_it)))
        return any(
            re.search(rf"(?<![\d.])(?<!\d ){re.escape(text)}(?![\d.]*\d| \d{{3}}\b)", told) for text in texts
        )


def lines() -> Iterator[tuple[str, list[str]]]:
    """Rows of all tables, with their section."""
    section, head = "", True
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if not line.startswith("|"):
            head = True
        elif head:
            head = False
        elif not line.startswith("| --- |"):
            yield section, [cell.strip() for cell in line.strip("| ").split(" | ")]


@cache
def rows() -> tuple[Row, ...]:
    """The bounds."""
    found = []
    for section, cells in lines():
        if section not in HEADS:
            assert len(cells) == len(Row.__slots__) - 1, cells
            found.append(Row(section, *cells))
    return tuple(found)


def of_table(section: str) -> list[list[str]]:
    """Rows of another table."""
    found = [cells for other, cells in lines() if other == section]
    assert all(len(cells) == HEADS[section] for cells in found)
    return found


@cache
def _text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


OF_AGENT = [row for row in rows() if row.section == AGENT]
OF_SERVICES = [row for row in rows() if row.section != AGENT]


def spelled(name: str, value: float) -> set[str]:
    """How a default may be written."""
    texts = {f"{value:g}", f"{value:.0f}", f"{value:,.0f}".replace(",", " ")}
    if "bytes" in name.lower() or "wal" in name.lower() or "message_length" in name or "metadata" in name:
        texts |= {f"{value / 1024**power:g} {unit}" for power, unit in ((1, "KiB"), (2, "MiB"), (3, "GiB"))}
    if "seconds" in name.lower() or name.endswith("_MS"):
        seconds = value / 1000 if name.endswith("_MS") else value
        texts |= {f"{seconds:g} s", f"{seconds / 3600:g} h", f"{seconds / 60:g} min"}
        texts |= {f"{seconds / 86_400:g} day", f"{seconds / 86_400:,.0f} day".replace(",", " ")}
    return texts | {f"{text}s" for text in texts if text.endswith("day")}


def test_the_table_is_there_and_says_what_happens() -> None:
    assert len(rows()) > 200
    assert not [row for row in rows() if not all((row.bound, row.default, row.setting, row.per, row.counter))]


@pytest.mark.parametrize("row", OF_SERVICES, ids=lambda row: row.bound[:50])
def test_the_settings_of_a_bound_exist_with_their_default(row: Row) -> None:
    flags = _FLAG.findall(row.setting)
    named = row.named()
    assert len({field for _, field in named}) == len(set(flags)), f"no such setting: {row.setting}"
    for service, field in named:
        default = SETTINGS[service].model_fields[field].default
        if isinstance(default, int | float) and not any(how in row.default for how in _DERIVED):
            assert row.shows(spelled(field, default)), (row.default, field, default)


def test_every_number_is_that_of_the_constant_beside_it() -> None:
    wrong = []
    for row in rows():
        for name in row.constants():
            value = bounds_in_code.value_of(name)
            value = value[0] if isinstance(value, tuple) else value
            assert isinstance(value, int | float), name
            if not row.shows(
                spelled(name, value) | ({f"{value}th", f"{value}rd"} if value < 10_000 else set())
            ):
                wrong.append((row.bound, row.default, name, value))
    assert wrong == []


def test_every_row_names_tests_that_are_there() -> None:
    wrong = []
    for row in rows():
        tests = _TEST.findall(row.test)
        missing = [
            one for one in tests if f"def {one[1]}(" not in _text_of(PAGE.parent.parent / "tests" / one[0])
        ]
        if missing or ", ".join(f"`{path}::{name}`" for path, name in tests) != row.test:
            wrong.append((row.bound, row.default, row.test))
    assert [one for one in wrong if not one[2].startswith("-")] == []
    assert len(wrong) < MAX_UNTESTED


def test_what_others_notice_is_measured_by_tests_that_are_there() -> None:
    for *_, named in of_table(NOTICED):
        ((path, name),) = _TEST.findall(named)
        text = _text_of(PAGE.parent.parent / "tests" / path)
        assert f"def {name}(" in text
        assert "figures(" in text


def test_every_counter_is_one_that_a_service_has() -> None:
    declared = {name for service in SETTINGS for name in declared_metrics(service)}
    unknown = set()
    for row in OF_SERVICES:
        for name in _COUNTER.findall(row.counter):
            wanted = re.compile(re.escape(name).replace(r"\*", "[a-z]+") + "(_seconds|_count|_sum)?")
            if not any(wanted.fullmatch(one) for one in declared):
                unknown.add(name)
    assert unknown == set()


@pytest.mark.parametrize("service", list(SETTINGS))
def test_every_number_that_can_be_set_is_in_the_table(service: str) -> None:
    told = {name for row in OF_SERVICES for name in row.named()}
    bounds = {
        (service, name)
        for name, field in SETTINGS[service].model_fields.items()
        if type(field.default) in (int, float)
    }
    assert bounds - told - NO_BOUND_SETTINGS == set()
    assert told & NO_BOUND_SETTINGS == set()


def _told_by_settings(name: str) -> bool:
    kind, _, field = name.rpartition(".")
    fields = FROM_SETTINGS.get(kind, set())
    return fields is None or field in fields


@pytest.mark.parametrize("find", [bounds_in_code.constants, bounds_in_code.defaults, bounds_in_code.options])
def test_every_constant_that_is_a_bound_is_in_the_table(find: Callable[[], Iterator[str]]) -> None:
    told = {name for row in rows() for name in row.constants()}
    bounds = {name for name in find() if isinstance(bounds_in_code.value_of(name), int | float | tuple)}
    assert len(bounds) >= 5
    assert {name for name in bounds if not _told_by_settings(name)} - told - set(NO_BOUNDS) == set()


def test_what_is_no_bound_is_there_and_not_in_the_table() -> None:
    told = {name for row in rows() for name in row.constants()}
    assert told & set(NO_BOUNDS) == set()
    assert all(isinstance(bounds_in_code.value_of(name), int | float) for name in NO_BOUNDS)


def test_every_number_that_the_agent_can_be_started_with_is_in_the_table() -> None:
    flags = {
        name: given.default
        for name, given in inspect.signature(edge.__main__.run).parameters.items()
        if type(given.default) in (int, float) and given.default
    }
    told = {flag.replace("-", "_"): row for row in OF_AGENT for flag in _FLAG.findall(row.setting)}
    # How often an edge says that it is there bounds nothing.
    assert flags.keys() - told.keys() == {"keepalive"}
    wrong = {
        (name, default)
        for name, default in flags.items()
        if name in told and not told[name].shows(spelled(f"{name}_seconds", default) | spelled(name, default))
    }
    assert wrong == set()


def test_every_class_that_holds_a_collection_has_a_bound() -> None:
    told = [name for cells in of_table(COLLECTIONS) for name in _NAME.findall(cells[2])]
    assert len(told) == len(set(told))
    assert set(told) == set(bounds_in_code.growing())


def test_what_bounds_a_collection_is_in_the_table_of_bounds() -> None:
    constants = {name for row in rows() for name in row.constants()}
    flags = {flag for row in rows() for flag in _FLAG.findall(row.setting)}
    for _, bounded_by, _ in of_table(COLLECTIONS):
        assert set(_NAME.findall(bounded_by)) - constants == set()
        assert set(_FLAG.findall(bounded_by)) - flags == set()


@pytest.mark.parametrize(
    ("service", "tables"), [("dispatcher", dispatcher_tables), ("sessions", sessions_tables)]
)
def test_every_table_of_a_database_says_what_bounds_its_rows(service: str, tables: MetaData) -> None:
    told = {cells[0].strip("`") for cells in of_table(TABLES) if cells[1] == service}
    assert told == set(tables.tables)


def test_every_table_of_the_agents_database_says_what_bounds_its_rows() -> None:
    told = {cells[0].strip("`") for cells in of_table(TABLES) if cells[1] == "edge"}
    text = Path(edge.store.__file__).read_text()
    assert told == set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", text))


def test_every_file_that_is_written_is_told() -> None:
    told = {name for cells in of_table(FILES) for name in _NAME.findall(cells[1])}
    assert told == set(bounds_in_code.writers_of_files())

"""The documents hold what they promise: links, paths, requests, tables, cases."""

import ast
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf import json_format, symbol_database

from cloudhub.v1 import connector_pb2, dispatcher_pb2, enrolment_pb2, sessions_pb2
from scripts.document_settings import rendered
from services.connector.close_codes import BINARY_FRAME, CLOSE_CODES, FRAME_FAULT_CODES
from services.dispatcher.node_deletion import node_to_delete
from services.dispatcher.publication import Publication, PublishLimits, Rejection, check_request
from tests.docs.cookbook import commands_of, overlooked
from tests.metrics.declared import declared_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
OPERATIONS = ROOT / "docs" / "operations"
# Where this repository's own commands write; a fresh checkout has nothing there.
WRITTEN = ("bench/out/", "chaos/out", "soak/out")
# The cases that the suite has to prove; a test names the one it proves in its docstring.
CASES = {*range(1, 41)}

_SERVICES = {
    service.full_name: service
    for module in (connector_pb2, dispatcher_pb2, enrolment_pb2, sessions_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}
_ENROLMENT = "cloudhub.v1.EnrolmentAdmin"
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FOLDERS = "services|edge|ctl|tests|protos|examples|scripts|docs|deploy|bench|chaos|demo|fuzz|soak"
_PATH = re.compile(rf"`((?:{_FOLDERS})/[\w./-]*)`")
_REQUEST = re.compile(r"-d '([^']*)'\s*(?:\\\s*)?127\.0\.0\.1:\d+ (cloudhub\.v1\.\w+)/(\w+)")
_METRIC = re.compile(r"^\| `(cloudhub_\w+)` \| \w+ \|", re.MULTILINE)
_CASE = re.compile(r"\bC(\d+)\b")

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def cookbook_pages() -> list[Path]:
    """Of one hub, in the order in which they are read."""
    return sorted(OPERATIONS.glob("cookbook-*.md"))


def without_code(text: str) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """What `#...` may name in a document, by the rules of GitHub."""
    headings = re.findall(r"^#+ (.+)$", without_code(document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Links of a document into the repository that lead nowhere."""
    broken = []
    for target in _LINK.findall(without_code(document.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    return broken


def requests_of(text: str) -> Iterator[tuple[str, str, dict[str, object]]]:
    """(service, method, request) of every grpcurl command that carries data."""
    decoder = json.JSONDecoder()
    for data, service, method in _REQUEST.findall(text):
        left = data.strip()
        while left:
            request, end = decoder.raw_decode(left)
            yield service, method, request
            left = left[end:].strip()


def docstrings(folder: Path) -> Iterator[str]:
    """Of all modules, classes and functions in test files below a folder."""
    for path in sorted(folder.rglob("*.py")):
        if path.name.startswith("test_"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield ast.get_docstring(node) or ""


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


@documents
def test_links_between_documents_resolve(document: Path) -> None:
    assert broken_links(document) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One thing\n\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text("[a](b.md#one-thing) [b](b.md#no-heading) [c](gone.md) [d](#nothing) [e](https://gone)\n")
    assert broken_links(page) == ["b.md#no-heading", "gone.md", "#nothing"]


@documents
def test_paths_that_a_document_names_exist(document: Path) -> None:
    named = [path for path in _PATH.findall(document.read_text()) if not path.startswith(WRITTEN)]
    assert [path for path in named if not (ROOT / path).exists()] == []


@documents
def test_documents_speak_of_the_project_alone(document: Path) -> None:
    assert re.findall(r"/work/|/tmp/|/home/|/root/|\bTODO\b|\bFIXME\b", document.read_text()) == []


@documents
def test_every_command_that_a_document_shows_is_run(document: Path) -> None:
    assert overlooked(document.read_text()) == []


def test_commands_shown_are_found() -> None:
    found = {page: len(commands_of(page.read_text())) for page in DOCUMENTS}
    assert found[ROOT / "README.md"] >= 3
    assert sum(found[page] for page in cookbook_pages()) >= 30


@documents
def test_requests_shown_are_requests_of_their_method(document: Path) -> None:
    for service, method, request in requests_of(document.read_text()):
        wanted = _SERVICES[service].methods_by_name[method].input_type
        message = symbol_database.Default().GetSymbol(wanted.full_name)()
        json_format.ParseDict(request, message)


def test_requests_shown_are_found() -> None:
    shown = {(service, method) for page in DOCUMENTS for service, method, _ in requests_of(page.read_text())}
    assert ("cloudhub.v1.DispatcherService", "PublishStream") in shown
    assert ("cloudhub.v1.SessionsAdmin", "EvictSession") in shown
    assert len(shown) >= 10


def test_the_publish_of_the_readme_would_be_taken() -> None:
    found = [
        request for _, method, request in requests_of((ROOT / "README.md").read_text()) if method == "Publish"
    ]
    assert found
    for request in found:
        publish = json_format.ParseDict(request, dispatcher_pb2.PublishRequest())
        checked = check_request(publish, PublishLimits(), "id", 0, "")
        assert isinstance(checked, Publication)
        assert checked.acknowledged
        assert checked.key == "prices"


def test_publishes_shown_are_such_that_stock_edges_acknowledge_or_want_none() -> None:
    shown = [
        json_format.ParseDict(request, dispatcher_pb2.PublishRequest())
        for page in DOCUMENTS
        for _, method, asked in requests_of(page.read_text())
        if method in ("Publish", "PublishStream")
        for request in (cast(list[Any], asked["requests"]) if method == "PublishStream" else [asked])
    ]
    shown = [request for request in shown if node_to_delete(request) is None]
    assert len(shown) >= 8
    for request in shown:
        message = request.message
        assert message.source, message
        assert message.group, message
        checked = check_request(request, PublishLimits(), "id", 0, "")
        if isinstance(checked, Rejection):
            # Shown for what becomes of them.
            assert (checked.reason, message.operation) in (
                ("VERSION_MALFORMED", "update"),
                ("OPERATION_NOT_ACKNOWLEDGED", "frobnicate"),
            )


def test_every_call_for_operators_and_programs_is_shown() -> None:
    text = "".join(page.read_text() for page in cookbook_pages())
    wanted = ("DispatcherService", "DispatcherAdmin", "SessionsAdmin", "ConnectorAdmin")
    calls = [
        (service.name, method.name)
        for service in _SERVICES.values()
        if service.name in wanted
        for method in service.methods
    ]
    calls += [("EnrolmentAdmin", method.name) for method in _SERVICES[_ENROLMENT].methods]
    text += (ROOT / "docs" / "enrolment.md").read_text()
    assert calls
    assert [call for call in calls if f"cloudhub.v1.{call[0]}/{call[1]}" not in text] == []


def test_settings_tables_are_current() -> None:
    text = (OPERATIONS / "settings.md").read_text()
    assert rendered(text) == text


def test_a_settings_table_without_a_place_is_told() -> None:
    with pytest.raises(ValueError, match="settings: sessions"):
        rendered("# Operations\n")


def test_metrics_tables_name_every_metric_once() -> None:
    """What each row says is compared by `metrics/test_documented.py`."""
    services = ("sessions", "dispatcher", "connector", "enrolment")
    there = {name for service in services for name in declared_metrics(service)}
    told = _METRIC.findall((OPERATIONS / "metrics.md").read_text())
    assert sorted(told) == sorted(there)


def test_every_close_code_is_documented() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    codes = {row.code: row.text for row in (*CLOSE_CODES.values(), *FRAME_FAULT_CODES.values(), BINARY_FRAME)}
    assert [code for code in sorted(codes) if f"\n| {code} |" not in text] == []


def test_every_case_is_named_by_a_test() -> None:
    named = {int(number) for text in docstrings(ROOT / "tests") for number in _CASE.findall(text)}
    assert sorted(CASES - named) == []


def test_the_check_of_a_bare_machine_can_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)

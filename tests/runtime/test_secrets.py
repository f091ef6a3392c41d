"""What logs and refusals may not tell."""

import subprocess
import sys

import pytest

from services.runtime.errors import StartupError
from services.runtime.settings import load_settings
from services.runtime.tracing import configure_tracing
from services.sessions.settings import SessionsSettings

FAILING = """
import sys
from services.runtime.logs import configure_logs, get_log

configure_logs("service", "one", "info", sys.argv[1])

def connect(url):
    raise RuntimeError("no")

try:
    connect("postgresql://hub:" + "Xk7" + "9Lq2@host/hub")
except RuntimeError:
    get_log("test").exception("it.failed")
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_tracebacks_in_logs_show_no_variables(form: str) -> None:
    """C53: the caller of what failed may hold a password."""
    said = subprocess.run(
        [sys.executable, "-c", FAILING, form], capture_output=True, text=True, check=True, timeout=60
    ).stderr
    assert "RuntimeError" in said
    assert "connect" in said
    assert "9Lq2" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--databse", "Xk79Lq2s"], "argument 1: --databse is no flag"),
        (["--databse=Xk79Lq2s"], "argument 1: --databse is no flag"),
        (["--database=", "Xk79Lq2s"], "argument 2: it is no flag and no value of one"),
        (["-dXk79Lq2s"], "argument 1: it is no flag"),
        (["--lease-seconds", "//hub:Xk79Lq2s@host"], "unable to parse string as a number; its value is not"),
    ],
)
def test_an_argument_that_is_refused_is_not_repeated(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """C53."""
    with pytest.raises(SystemExit) as end:
        load_settings(SessionsSettings, "program", arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Xk79Lq2s" not in said


def test_a_wrong_value_that_holds_no_secret_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(SessionsSettings, "program", ["--lease-seconds", "long" * 100])
    assert "got 'longlong" in (said := capsys.readouterr().err)
    assert len(said) < 300


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:Xk79Lq2s@127.0.0.1:1", "without user and password"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,authorization Xk79Lq2s", "entry 2 should be NAME=VALUE"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%0AXk79Lq2s", "entry 1 should be NAME=VALUE"),
    ],
)
def test_what_an_exporter_would_repeat_in_the_logs_ends_the_start(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C53."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(StartupError, match=says) as said:
        configure_tracing("sessions", "one")
    assert "Xk79Lq2s" not in str(said.value)


def test_headers_of_an_exporter_may_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20Xk79Lq2s%3D%3D, tenant = one")
    tracing = configure_tracing("sessions", "one")
    assert tracing.enabled
    tracing.close()

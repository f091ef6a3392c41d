"""Settings of the services from flags and environment, and the files and databases that they name."""

import contextlib
import io
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fuzz.mutations import ODD_TEXTS, mutated
from fuzz.target import Check
from services.connector.settings import ConnectorSettings
from services.connector.tls import server_context
from services.dispatcher.settings import DispatcherSettings
from services.enrolment.settings import EnrolmentSettings
from services.runtime.clock import SystemClock
from services.runtime.database_url import check_url, sqlite_path
from services.runtime.errors import StartupError
from services.runtime.settings import ServiceSettings, load_settings
from services.runtime.tls_files import TlsFiles
from services.sessions.settings import SessionsSettings
from tests.support.certs import TestAuthority

_KINDS: tuple[type[ServiceSettings], ...] = (
    ConnectorSettings,
    DispatcherSettings,
    EnrolmentSettings,
    SessionsSettings,
)
_LARGEST = 2**63 - 1
_PLAUSIBLE = ("127.0.0.1:1", "[::1]:1", "a:1,b:2", "1", "0", "5.5", "json", "true", "sqlite:///x.db")
_ODD = (
    *(text for text in ODD_TEXTS if len(text) < 1000),
    *(
        "inf",
        "-inf",
        "nan",
        "-1",
        "1e400",
        "1_000",
        "0x10",
        "9" * 30,
        "{}",
        "[1,2]",
        "null",
        "None",
        "--help",
    ),
    *("sqlite://", "sqlite:///", "sqlite:///\x00", "sqlite:///:memory:", "postgresql://", "postgresql://["),
    *(
        "postgresql://u:p@h:notaport/d",
        "postgresql://u@h,h2:1/d?x=y",
        "mysql://x",
        "127.0.0.1",
        ":1",
        "a:99999",
    ),
)
_TEXTS = st.sampled_from(_PLAUSIBLE) | st.sampled_from(_ODD) | st.text(max_size=10)


@dataclass(frozen=True, slots=True)
class Start:
    """How a service is started: by flags, or by the environment."""

    kind: type[ServiceSettings]
    values: tuple[tuple[str, str], ...]
    by_flags: bool


def starts() -> SearchStrategy[Start]:
    """Any texts for some settings of a service."""

    def of(kind: type[ServiceSettings]) -> SearchStrategy[Start]:
        one = st.tuples(st.sampled_from([*kind.model_fields, "no_such_setting"]), _TEXTS)
        return st.builds(Start, st.just(kind), st.lists(one, max_size=4).map(tuple), st.booleans())

    return st.sampled_from(_KINDS).flatmap(of)


def check_start(start: Start) -> None:
    """Settings whose numbers every clock and column holds, or status 2 and a sentence per fault."""
    prefix = str(start.kind.model_config.get("env_prefix", ""))
    flags, environment = [], {}
    for name, text in start.values:
        if start.by_flags:
            flags.append(f"--{name.replace('_', '-')}={text}")
        elif "\x00" not in text and text.isprintable():
            environment[(prefix + name).upper()] = text
    said, printed = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(printed),
    ):
        try:
            settings = load_settings(start.kind, "fuzzed", flags)
        except SystemExit as end:
            asked_for_help = end.code == 0 and bool(printed.getvalue())
            assert asked_for_help or (
                end.code == 2 and said.getvalue().startswith(("fuzzed: ", "usage: "))
            ), (
                start,
                end.code,
                said.getvalue(),
            )
            return
    for name, value in settings:
        if isinstance(value, int | float):
            assert math.isfinite(value), (name, value)
            assert abs(value) * 1000 <= _LARGEST, (name, value)
    if isinstance(settings, DispatcherSettings | SessionsSettings):
        check_database(settings.database)


def check_database(url: str) -> None:
    """A URL names a database or is refused with a sentence."""
    with contextlib.suppress(StartupError):
        sqlite_path(url)
    with contextlib.suppress(StartupError):
        check_url(url)


@contextmanager
def starts_checked() -> Iterator[Check[Start]]:
    """Settings need nothing."""
    yield check_start


@dataclass(frozen=True, slots=True)
class Files:
    """Content of the files that a connector reads at its start."""

    certificate: bytes
    private_key: bytes
    client_ca: bytes


_FOLDER = tempfile.TemporaryDirectory(prefix="cloudhub-fuzz-certificates-")


def _right() -> Files:
    authority = TestAuthority(Path(_FOLDER.name))
    server = authority.issue("localhost", None, file="server")
    return Files(server.certificate.read_bytes(), server.key.read_bytes(), authority.certificate.read_bytes())


def files() -> SearchStrategy[Files]:
    """One or more of the files spoiled, or another's in its place."""
    right = _right()
    contents = (right.certificate, right.private_key, right.client_ca)
    odd = st.sampled_from([b"", b"\x00", *contents, right.certificate * 2, b"-----BEGIN CERTIFICATE-----\n"])

    def spoiled(content: bytes) -> SearchStrategy[bytes]:
        return st.one_of(st.just(content), mutated(st.just(content)), odd)

    return st.builds(Files, *map(spoiled, contents))


@contextmanager
def files_checked() -> Iterator[Check[Files]]:
    """The connector's TLS settings are made of the files, or they are refused with a sentence."""
    now_ms = SystemClock().wall_ms()
    with tempfile.TemporaryDirectory(prefix="cloudhub-fuzz-") as folder:
        certificate, private_key, client_ca = (Path(folder, name) for name in ("a.crt", "a.key", "ca.crt"))

        def check(content: Files) -> None:
            certificate.write_bytes(content.certificate)
            private_key.write_bytes(content.private_key)
            client_ca.write_bytes(content.client_ca)
            try:
                server_context(TlsFiles(certificate, private_key, client_ca), now_ms)
            except StartupError as error:
                assert folder in str(error), f"{error} names no file"

        yield check

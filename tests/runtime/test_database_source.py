"""Where the database is: one of two settings, and a file that may hold nonsense."""

from pathlib import Path

import pytest

from services.runtime.database_source import DatabaseSource
from services.runtime.errors import StartupError
from services.runtime.settings import load_settings
from services.sessions.settings import SessionsMigrationSettings, SessionsSettings

SECRET = "postgresql://hub:Xk79Lq2s@db/hub"

kinds = pytest.mark.parametrize("kind", [SessionsSettings, SessionsMigrationSettings])


@kinds
def test_a_file_stands_for_the_url(
    kind: type[SessionsSettings] | type[SessionsMigrationSettings], tmp_path: Path
) -> None:
    file = tmp_path / "url"
    file.write_text(f"{SECRET}\n")
    source = load_settings(kind, "hub", ["--database-url-file", str(file)]).database_source
    assert (source.read(), source.may_change) == (SECRET, True)
    file.write_text("postgresql://other/hub")
    assert source.read() == "postgresql://other/hub"


@kinds
def test_both_ways_at_once_are_refused_without_the_secret(
    kind: type[SessionsSettings] | type[SessionsMigrationSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """C53. One of them by the environment: what is given where does not matter."""
    monkeypatch.setenv("CLOUDHUB_SESSIONS_DATABASE", SECRET)
    with pytest.raises(SystemExit) as ended:
        load_settings(kind, "hub", ["--database-url-file", "/url"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told == "hub: --database and --database-url-file exclude each other: give one of them\n"


def test_a_url_alone_stays_what_it_is() -> None:
    source = load_settings(SessionsSettings, "hub", ["--database", "sqlite:///here.db"]).database_source
    assert (source.read(), source.may_change) == ("sqlite:///here.db", False)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot read the URL of the database from .*: No such file"),
        (b"\xff\xfe", "it is not text"),
        (b"x" * 20_000, "it is over 16384 bytes"),
    ],
)
def test_a_file_that_is_none_is_told_in_a_sentence(content: bytes | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartupError, match=told):
        DatabaseSource("", file).read()

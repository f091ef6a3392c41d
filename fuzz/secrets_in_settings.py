"""Passwords in settings of every kind of wrong: nothing of them may be told."""

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from unittest import mock

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic_settings import BaseSettings

from fuzz.target import Check
from services.connector.settings import ConnectorSettings
from services.dispatcher.settings import DispatcherMigrationSettings, DispatcherSettings
from services.enrolment.settings import EnrolmentSettings
from services.runtime.database_url import check_url, engine_of, hosts_of, shown, sqlite_path
from services.runtime.errors import StartupError
from services.runtime.settings import load_settings
from services.sessions.settings import SessionsMigrationSettings, SessionsSettings

_KINDS: tuple[type[BaseSettings], ...] = (
    ConnectorSettings,
    DispatcherSettings,
    EnrolmentSettings,
    SessionsSettings,
    DispatcherMigrationSettings,
    SessionsMigrationSettings,
)
# Capitals and digits that stand in no sentence of ours, and what URLs are taken apart by.
_LETTERS = "QXZJKWqxzjkw0123456789"
_MARKS = "#/?@[]:%&=,; ^|$"
_FORMS = (
    "postgresql://hub:{}@h/d",
    "postgresql://hub:{}@h:1,h2:2/d?sslmode=require",
    "postgresql://hub:{}@h",
    "postgresql://hub:{}@",
    "postgresql://{}@h/d",
    "postgresql://[{}]@h/d",
    "postgresql://hub:{}@h:port/d",
    "postgresql://hub:{}@h:99999/d",
    "postgresql://hub:{}@[::1/d",
    "postgresql://hub:{}@h/d#x",
    "postgresql://hub@h/d?password={}",
    "postgresql:/hub:{}@h/d",
    "postgresql:hub:{}@h/d",
    "postgres://hub:{}@h/d",
    "postgresql+asyncpg://hub:{}@h/d",
    " postgresql://hub:{}@h/d",
    "'postgresql://hub:{}@h/d'",
    "mysql://hub:{}@h/d",
    "sqlite://hub:{}@h/d",
    "//hub:{}@h/d",
    "hub:{}@h/d",
    "{}@h",
)
LEAST_CHARS = 4
"""So much of a password in one piece is too much."""


class Way(StrEnum):
    """How the URL comes to a service."""

    FLAG = "--database URL"
    JOINED_FLAG = "--database=URL"
    MISTYPED_FLAG = "--databse URL"
    MISTYPED_JOINED_FLAG = "--data-base=URL"
    UNQUOTED = "as many arguments as it has words"
    ENVIRONMENT = "CLOUDHUB_..._DATABASE"


@dataclass(frozen=True, slots=True)
class Told:
    """A URL with a password, where it is given."""

    kind: type[BaseSettings]
    form: str
    password: str
    way: Way
    setting: str
    """Whose flag or variable it is given by, perhaps by mistake."""

    @property
    def url(self) -> str:
        """What is given."""
        return self.form.format(self.password)


def secrets_told() -> SearchStrategy[Told]:
    """Any password in any form, to any setting of any service."""
    passwords = st.lists(
        st.text(_LETTERS, min_size=1, max_size=6) | st.sampled_from(_MARKS), min_size=2, max_size=6
    ).map("".join)

    def of(kind: type[BaseSettings]) -> SearchStrategy[Told]:
        settings = st.sampled_from([*kind.model_fields, "database"])
        return st.builds(
            Told, st.just(kind), st.sampled_from(_FORMS), passwords, st.sampled_from(list(Way)), settings
        )

    return st.sampled_from(_KINDS).flatmap(of)


def pieces_of(password: str) -> list[str]:
    """What of a password may stand in no output: every piece of four characters that the forms do not hold
    anyway."""
    found = (password[at : at + LEAST_CHARS] for at in range(len(password) - LEAST_CHARS + 1))
    return [piece for piece in found if sum(char in _LETTERS for char in piece) > 1]


def check_told(told: Told) -> None:
    """Settings take it or say what is wrong, and so does whoever opens the database: without the password."""
    said = io.StringIO()
    _load(told, said)
    for read in (check_url, hosts_of, sqlite_path, engine_of):
        with contextlib.suppress(StartupError):
            try:
                read(told.url)
            except StartupError as error:
                said.write(str(error))
                raise
    with contextlib.suppress(StartupError):
        said.write(shown(told.url))
    for piece in pieces_of(told.password):
        assert piece not in said.getvalue(), (told, piece, said.getvalue())


def _load(told: Told, said: io.StringIO) -> None:
    flag = "--" + told.setting.replace("_", "-")
    arguments = {
        Way.FLAG: [flag, told.url],
        Way.JOINED_FLAG: [f"{flag}={told.url}"],
        Way.MISTYPED_FLAG: [flag.replace("a", ""), told.url],
        Way.MISTYPED_JOINED_FLAG: [f"{flag}-x={told.url}"],
        Way.UNQUOTED: [flag, *told.url.split(" ")],
        Way.ENVIRONMENT: [],
    }[told.way]
    prefix = str(told.kind.model_config.get("env_prefix", ""))
    environment = {} if arguments else {(prefix + told.setting).upper(): told.url}
    with (
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
    ):
        try:
            settings = load_settings(told.kind, "fuzzed", arguments)
        except SystemExit as end:
            assert end.code == 2, (told, end.code, said.getvalue())
        else:
            if told.setting == "database":
                said.write(repr(settings))


@contextmanager
def secrets_checked() -> Iterator[Check[Told]]:
    """Settings need nothing."""
    yield check_told

"""Where a service's database is, by its settings: a URL, or a file that holds one and may change."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from services.runtime.errors import StartupError

_MAX_BYTES = 16 * 1024


class DatabaseSettings(BaseModel):
    """The two ways to name a database. Subclasses give `database` its default."""

    database: str
    database_url_file: Path | None = Field(
        None,
        description="file that holds the URL instead, read again when connections fail (a password that was "
        "changed needs no restart)",
    )

    @model_validator(mode="before")
    @classmethod
    def _check_one_way(cls, given: Any) -> Any:
        # Where neither is given, `database` says so itself.
        if isinstance(given, dict) and given.get("database_url_file"):
            if given.get("database"):
                raise ValueError("--database and --database-url-file exclude each other: give one of them")
            return {**given, "database": ""}
        return given

    @property
    def database_source(self) -> "DatabaseSource":
        """Where it is."""
        return DatabaseSource(self.database, self.database_url_file)


class DatabaseSource:
    """A URL; with `file` the one that it holds whenever it is read."""

    def __init__(self, url: str, file: Path | None = None) -> None:
        self._url = url
        self._file = file

    @property
    def may_change(self) -> bool:
        """Whether `read` may give another URL later."""
        return self._file is not None

    def read(self) -> str:
        """The URL as it is now. Raises StartupError, which shows nothing of it."""
        if self._file is None:
            return self._url
        try:
            with self._file.open("rb") as opened:
                content = opened.read(_MAX_BYTES + 1)
        except OSError as error:
            raise StartupError(
                f"cannot read the URL of the database from {self._file}: {error.strerror or error}"
            ) from error
        if len(content) > _MAX_BYTES:
            raise StartupError(
                f"{self._file} should hold the URL of a database; it is over {_MAX_BYTES} bytes"
            )
        try:
            return content.decode().strip()
        except UnicodeDecodeError:
            raise StartupError(f"{self._file} should hold the URL of a database; it is not text") from None

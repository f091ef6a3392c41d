"""Copies of SQLite files, by SQLite's own online backup: a service may have the file and go on writing."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError

from services.runtime.errors import StartupError
from services.runtime.migrations import Schema, check_own, known_version
from services.runtime.sqlite_files import SqliteFiles

CHUNK_BYTES = 1024 * 1024
"""Of a copy that is written to or read from a pipe: no more of it is in memory."""


def back_up(database: Path, file: Path, schema: Schema) -> str:
    """Writes a copy of the database into a new file, which is whole or not there; the version of the schema
    that it holds. Raises StartupError."""
    if file.exists():
        raise StartupError(f"{file} is there already: give the backup another name, or take the old one away")
    if not database.exists():
        raise StartupError(f"there is no database {database} to back up")
    part = file.with_name(f".{file.name}.part")
    try:
        part.unlink(missing_ok=True)  # left by one that was killed
        with closing(_opened(database, "ro")) as source, closing(sqlite3.connect(part)) as copy:
            source.backup(copy)
            # One file and no log beside it.
            copy.execute("PRAGMA journal_mode=DELETE")
        version = _checked(part, schema)
        _sync(part)
        part.rename(file)
        _sync(file.parent)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"cannot back up {database} to {file}: {_said(error)}") from error
    finally:
        part.unlink(missing_ok=True)
    return version


def give(database: Path, sink: BinaryIO, schema: Schema) -> str:
    """As `back_up`, to a pipe: by a file beside the database, which has to find room there."""
    with _beside(database) as file:
        version = back_up(database, file, schema)
        try:
            with file.open("rb") as copy:
                _pass_on(copy, sink)
            sink.flush()
        except OSError as error:
            raise StartupError(f"the backup of {database} could not be written: {_said(error)}") from error
        return version


def restore(database: Path, file: Path, schema: Schema) -> str:
    """Fills a database that is not there, or holds nothing, from a copy; the version of the schema in it.

    Raises StartupError if the copy is not whole or not of this schema, or the database holds something or is
    in use; then it is left as it is.
    """
    if not file.is_file():
        raise StartupError(f"there is no backup {file}")
    version = _checked(file, schema)
    files = SqliteFiles(database)
    try:
        log = database.with_name(f"{database.name}-wal")
        if database.stat().st_size or (log.exists() and log.stat().st_size):
            raise StartupError(
                f"database {database} is not empty: a backup is restored into a new one; move the old file "
                f"and its -wal and -shm away first"
            )
        with closing(_opened(file, "ro")) as source, closing(sqlite3.connect(database)) as target:
            source.backup(target)
        _sync(database)
        _sync(database.parent)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"cannot restore {database} from {file}: {_said(error)}") from error
    finally:
        files.close()
    return version


def take(database: Path, source: BinaryIO, schema: Schema) -> str:
    """As `restore`, from a pipe: by a file beside the database, which has to find room there."""
    with _beside(database) as file:
        try:
            with file.open("wb") as copy:
                _pass_on(source, copy)
        except OSError as error:
            raise StartupError(f"the backup could not be read: {_said(error)}") from error
        return restore(database, file, schema)


def _opened(file: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode={mode}", uri=True)


def _checked(file: Path, schema: Schema) -> str:
    """The version of the schema that a whole copy holds. Raises StartupError."""
    engine = create_engine(URL.create("sqlite", database=str(file)))
    try:
        with engine.connect() as connection:
            return _looked_at(connection, file, schema)
    except DatabaseError as error:
        raise StartupError(f"{file} is no whole SQLite database: {error.orig}") from error
    finally:
        engine.dispose()


def _looked_at(connection: Connection, file: Path, schema: Schema) -> str:
    faults = list(connection.exec_driver_sql("PRAGMA quick_check(1)").scalars())
    if faults != ["ok"]:
        raise StartupError(f"{file} is no whole SQLite database: {faults[0]}")
    if check_own(connection, schema, str(file)):
        raise StartupError(f"{file} holds nothing")
    return known_version(connection, schema, str(file))


@contextmanager
def _beside(database: Path) -> Iterator[Path]:
    """The name of a file in a folder of its own beside the database, gone afterwards."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{database.name}.", dir=database.parent) as folder:
            yield Path(folder) / "copy.db"
    except OSError as error:
        raise StartupError(f"cannot write beside {database}: {_said(error)}") from error


def _pass_on(source: BinaryIO, sink: BinaryIO) -> None:
    while chunk := source.read(CHUNK_BYTES):
        sink.write(chunk)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _said(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

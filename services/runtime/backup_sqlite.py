"""Copies of SQLite files, by SQLite's own online backup: a service may have the file and go on writing."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError

from services.runtime.backup_files import (
    check_readable,
    draft_of,
    folder_for_a_copy,
    read_into,
    said_of,
    sync,
    write_out,
)
from services.runtime.errors import StartupError
from services.runtime.migrations import Schema, check_own, known_version
from services.runtime.sqlite_files import SqliteFiles

# Between two looks whether a signal came: 4 MiB.
_PAGES = 1024


def back_up(database: Path, file: Path, schema: Schema) -> str:
    """Writes a copy of the database into a new file, which is whole or not there; the version of the schema
    that it holds. Raises StartupError."""
    try:
        with draft_of(file) as part:
            if not database.exists():
                raise StartupError(f"there is no database {database} to back up")
            with closing(_opened(database, "ro")) as source, closing(sqlite3.connect(part)) as copy:
                _copy(source, copy)
                # One file and no log beside it.
                copy.execute("PRAGMA journal_mode=DELETE")
            version = _checked(part, schema)
            sync(part)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"cannot back up {database} to {file}: {said_of(error)}") from error
    return version


def give(database: Path, sink: BinaryIO, schema: Schema) -> str:
    """As `back_up`, to a pipe: by a file beside the database, which has to find room there."""
    with folder_for_a_copy(beside=database) as file:
        version = back_up(database, file, schema)
        write_out(file, sink)
        return version


def restore(database: Path, file: Path, schema: Schema) -> str:
    """Fills a database that is not there, or holds nothing, from a copy; the version of the schema in it.

    Raises StartupError if the copy is not whole or not of this schema, or the database holds something or is
    in use; then it is left as it is.
    """
    check_readable(file)
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
            _copy(source, target)
        sync(database)
        sync(database.parent)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"cannot restore {database} from {file}: {said_of(error)}") from error
    finally:
        files.close()
    return version


def take(database: Path, source: BinaryIO, schema: Schema) -> str:
    """As `restore`, from a pipe: by a file beside the database, which has to find room there."""
    with folder_for_a_copy(beside=database) as file:
        read_into(file, source)
        return restore(database, file, schema)


def _copy(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """All of it as of one instant, some pages at a time: between them a signal is heard, and its exception
    undoes the copy."""
    # Else each write to the source would begin the copy anew.
    source.execute("BEGIN")
    source.execute("SELECT count(*) FROM sqlite_master").fetchone()
    source.backup(target, pages=_PAGES, progress=lambda *_: None)
    source.execute("COMMIT")


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

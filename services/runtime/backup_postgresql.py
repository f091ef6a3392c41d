"""Backups of PostgreSQL databases, made and read by PostgreSQL's own pg_dump and pg_restore.

The hub has no way of its own: only these know what every version of the server writes. Where they are
missing, as in the images, they are run elsewhere.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from services.runtime.database_url import hosts_of, shown
from services.runtime.errors import StartupError
from services.runtime.migrations import Schema

_MOST_SAID = 2000
_LOAD_WORDS = ("--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges")


def _dump_words(schema: Schema) -> list[str]:
    tables = (f"--table={name}" for name in tables_of(schema))
    return ["--format=custom", "--no-owner", "--no-privileges", *tables]


def tables_of(schema: Schema) -> list[str]:
    """The tables of a service; another service's may be in the same database."""
    return [*sorted(schema.metadata.tables), schema.version_table]


def dump(url: str, sink: Path | BinaryIO, schema: Schema) -> None:
    """Writes the service's tables, as of one instant, in pg_dump's custom format. Raises StartupError."""
    words = _dump_words(schema)
    if isinstance(sink, Path):
        if sink.exists():
            raise StartupError(
                f"{sink} is there already: give the backup another name, or take the old one away"
            )
        part = sink.with_name(f".{sink.name}.part")
        try:
            _run("pg_dump", [*words, f"--file={part}"], url)
            part.rename(sink)
        finally:
            part.unlink(missing_ok=True)
        return
    _run("pg_dump", words, url, stdout=sink)


def check_programs(url: str, file: str, schema: Schema, *, restores: bool) -> None:
    """Raises StartupError, with what to run elsewhere, if the program for it is not installed. `file` as it
    was given, `-` for a pipe."""
    program = "pg_restore" if restores else "pg_dump"
    if shutil.which(program) is not None:
        return
    database = f"--dbname={shown(url)}"
    if restores:
        told = [program, database, *_LOAD_WORDS, *([] if file == "-" else [file])]
    else:
        told = [program, database, *_dump_words(schema), *([] if file == "-" else [f"--file={file}"])]
    raise StartupError(
        f"{program} is not installed here, and a PostgreSQL database is backed up and restored by "
        f"PostgreSQL's own programs alone: run it where they are, as in: {shlex.join(told)}"
    )


def load(url: str, file: Path, schema: Schema) -> None:
    """Reads such a file, all or nothing, into a database that has none of its tables. Raises StartupError."""
    if not file.is_file():
        raise StartupError(f"there is no backup {file}")
    listed = _run("pg_restore", ["--list", str(file)], None)
    if f" {schema.version_table} " not in listed:
        raise StartupError(f"{file} is no backup of the schema of {schema.service}")
    _run("pg_restore", [*_LOAD_WORDS, str(file)], url)


def _connection(url: str) -> tuple[str, dict[str, str]]:
    """The URL for libpq without its password, and the environment that has it: command lines can be read by
    everybody on the machine."""
    hosts = hosts_of(url)
    parts = urlsplit(hosts[0])
    query = dict(parse_qsl(parts.query))
    if "sslpassword" in query:
        raise StartupError(
            "the URL of the database has sslpassword, which a command line would show to everybody: give "
            "pg_dump and pg_restore a key without one"
        )
    password = query.pop("password", None) or unquote(parts.password or "")
    given = {"PGPASSWORD": password} if password else {}
    login = f"{parts.username}@" if parts.username else ""
    places = ",".join(urlsplit(one).netloc.rpartition("@")[2] for one in hosts)
    query.setdefault("target_session_attrs", "read-write")
    return f"postgresql://{login}{places}{parts.path}?{urlencode(query, quote_via=quote)}", given


def _run(program: str, words: list[str], url: str | None, stdout: BinaryIO | None = None) -> str:
    given: dict[str, str] = {}
    if url is not None:
        address, given = _connection(url)
        words = [f"--dbname={address}", *words]
    done = subprocess.run(
        [program, *words],
        env={**os.environ, **given},
        stdin=subprocess.DEVNULL,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-_MOST_SAID:]
        raise StartupError(f"{program} failed: {said}")
    return (done.stdout or b"").decode(errors="replace")

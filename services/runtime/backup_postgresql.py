"""Backups of PostgreSQL databases, made and read by PostgreSQL's own pg_dump and pg_restore.

The hub has no way of its own: only these know what every version of the server writes. Where they are
missing, as in the images, they are run elsewhere.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from services.runtime.backup_files import check_readable, draft_of
from services.runtime.database_url import hosts_of, shown
from services.runtime.errors import StartupError
from services.runtime.migrations import Schema, check_known

_MOST_SAID = 2000
# A row of the version table as pg_dump writes it, unless it was told to write INSERT.
_COPIED_VERSION = re.compile(r"^COPY [^\n]* FROM stdin;\n([^\n]+)\n\\\.$", re.MULTILINE)
_INSERTED_VERSION = re.compile(r"^INSERT INTO [^\n]* VALUES \('([^']*)'\);$", re.MULTILINE)
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
        with draft_of(sink) as part:
            _run("pg_dump", [*words, f"--file={part}"], url)
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
    """Reads such a file, all or nothing, into a database that has none of its tables. Raises StartupError,
    before anything is written if the file is of another service or of a newer release."""
    check_readable(file)
    listed = _run("pg_restore", ["--list", str(file)], None)
    if f" {schema.version_table} " not in listed:
        raise StartupError(f"{file} is no backup of the schema of {schema.service}")
    words = ["--data-only", f"--table={schema.version_table}", "--file=-", str(file)]
    data = _run("pg_restore", words, None)
    found = _COPIED_VERSION.search(data) or _INSERTED_VERSION.search(data)
    if found is None:
        raise StartupError(
            f"{file} does not say which version of the schema of {schema.service} it holds; it should have "
            f"the row of {schema.version_table}"
        )
    check_known(schema, found[1], str(file))
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
    try:
        done = subprocess.run(
            [program, *words],
            env={**os.environ, **given},
            stdin=subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise StartupError(f"{program} cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip()[-_MOST_SAID:].splitlines()
        said = (
            "; ".join(line.strip() for line in lines) or f"it says nothing, its status is {done.returncode}"
        )
        raise StartupError(f"{program} failed: {said}")
    return (done.stdout or b"").decode(errors="replace")

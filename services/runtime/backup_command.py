"""`python -m services.NAME backup FILE` and `... restore FILE`: a service's database into a file, and back.

`backup` may run while the service does. `restore` fills a database that is empty or not there. FILE may be
`-`: the standard output or input.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, cast

from sqlalchemy import Connection, inspect

from services.runtime import backup_postgresql, backup_sqlite
from services.runtime.backup_files import folder_for_a_copy, read_into
from services.runtime.database_url import engine_of, shown, sqlite_path
from services.runtime.errors import StartupError
from services.runtime.lifecycle import keep_standard_descriptors
from services.runtime.logs import configure_logs
from services.runtime.migration_command import MigrationSettings
from services.runtime.migrations import Schema, known_version
from services.runtime.settings import load_settings
from services.runtime.store import looked_at

BACKUP, RESTORE = "backup", "restore"
PIPE = "-"
_UNDONE = {BACKUP: "no half of a backup is left", RESTORE: "nothing is half restored"}


class _Stopped(KeyboardInterrupt):
    """A signal asked for the end. Raised wherever the program is: what was begun is undone on the way out, a
    child process killed. A KeyboardInterrupt, because no event loop keeps one for itself."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


def ran_backup(program: str, kind: type[MigrationSettings], schema: Schema) -> bool:
    """Whether the command line asks for a backup or a restoration, which is done then; exits with status 1
    and one sentence if it cannot be, with status 2 if no file is named."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word not in (BACKUP, RESTORE):
        return False
    rest = sys.argv[2:]
    file = rest.pop(0) if rest and (rest[0] == PIPE or not rest[0].startswith("-")) else ""
    if not file and not {"--help", "-h"} & set(rest):
        print(f"{program}: usage: {word} FILE [--database URL]; FILE may be -", file=sys.stderr)
        raise SystemExit(2)
    settings = load_settings(kind, f"{program} {word} FILE", rest)
    keep_standard_descriptors()
    # To standard error: the standard output may be the backup.
    configure_logs(schema.service, "", "warning", "text")
    source = settings.database_source

    pipe = _unbuffered(1 if word == BACKUP else 0)

    async def work() -> str:
        if word == BACKUP:
            return await back_up(source.read(), file, schema, pipe)
        return await restore(source.read(), file, schema, pipe)

    _run(program, word, work())
    return True


def _unbuffered(descriptor: int) -> BinaryIO:
    """What is left in a buffer is written out at the end, and waits for a reader."""
    return cast(BinaryIO, os.fdopen(descriptor, "wb" if descriptor else "rb", 0, closefd=False))


def _run(program: str, word: str, work: Coroutine[Any, Any, str]) -> None:
    """To its end, or to the first signal that asks for one: then the status is that of the signal."""

    def stop(number: int, _: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)  # the way out is short
        raise _Stopped(number)

    numbers = [
        one
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if one is not signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN
    ]
    try:
        for one in numbers:
            signal.signal(one, stop)
        print(asyncio.run(work), file=sys.stderr)
    except StartupError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except _Stopped as stopped:
        print(f"{program}: {word} was ended by {stopped.signal.name}: {_UNDONE[word]}", file=sys.stderr)
        raise SystemExit(128 + stopped.signal) from None


async def back_up(url: str, file: str, schema: Schema, pipe: BinaryIO) -> str:
    """Writes a service's database into a new file, or into `pipe` if that is `-`; says in one sentence what
    was done. Raises StartupError."""
    where = "standard output" if file == PIPE else file
    if engine_of(url) == "sqlite":
        path, name = sqlite_path(url), str(sqlite_path(url))
        if file == PIPE:
            version = backup_sqlite.give(path, pipe, schema)
        else:
            version = backup_sqlite.back_up(path, Path(file), schema)
    else:
        name = shown(url)
        backup_postgresql.check_programs(url, file, schema, restores=False)
        version = await looked_at(url, lambda connection: known_version(connection, schema, name))
        backup_postgresql.dump(url, pipe if file == PIPE else Path(file), schema)
    return f"database {name} with version {version} of the schema of {schema.service} is backed up in {where}"


async def restore(url: str, file: str, schema: Schema, pipe: BinaryIO) -> str:
    """Fills a database that is empty or not there from a file, or from `pipe`; says in one sentence what was
    done. Raises StartupError."""
    if engine_of(url) == "sqlite":
        path, name = sqlite_path(url), str(sqlite_path(url))
        if file == PIPE:
            version = backup_sqlite.take(path, pipe, schema)
        else:
            version = backup_sqlite.restore(path, Path(file), schema)
    else:
        name = shown(url)
        backup_postgresql.check_programs(url, file, schema, restores=True)
        await looked_at(url, lambda connection: _check_empty(connection, schema, name))
        if file == PIPE:
            with folder_for_a_copy() as copy:
                read_into(copy, pipe)
                backup_postgresql.load(url, copy, schema)
        else:
            backup_postgresql.load(url, Path(file), schema)
        version = await looked_at(url, lambda connection: known_version(connection, schema, name))
    return (
        f"database {name} holds version {version} of the schema of {schema.service}, as the backup does; run "
        f"migrate before a newer release"
    )


def _check_empty(connection: Connection, schema: Schema, name: str) -> None:
    found = set(inspect(connection).get_table_names()) & set(backup_postgresql.tables_of(schema))
    if found:
        raise StartupError(
            f"database {name} is not empty: it has {', '.join(sorted(found))}; a backup is restored into a "
            f"new database"
        )

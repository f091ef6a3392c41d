"""The files of a backup: new and whole, or not there; read from a pipe, or written to one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from services.runtime.errors import StartupError

CHUNK_BYTES = 1024 * 1024
"""Of a copy that is written to or read from a pipe: no more of it is in memory."""


@contextmanager
def draft_of(file: Path) -> Iterator[Path]:
    """Where a new file is written, which is called `file` if the body ends well, and is gone otherwise.

    Raises StartupError if `file` is there already or cannot be made.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        if file.exists():
            raise StartupError(
                f"{file} is there already: give the backup another name, or take the old one away"
            )
        part.unlink(missing_ok=True)  # left by one that was killed
        try:
            part.touch()
            yield part
            part.rename(file)
            sync(file.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StartupError(f"cannot write the backup {file}: {said_of(error)}") from error


def check_readable(file: Path) -> None:
    """Raises StartupError unless there is such a file and it can be read."""
    try:
        if not file.exists():
            raise StartupError(f"there is no backup {file}")
        if not file.is_file():
            raise StartupError(f"{file} is no file: name the one that the backup was written to")
        file.open("rb").close()
    except OSError as error:
        raise StartupError(f"cannot read the backup {file}: {said_of(error)}") from error


@contextmanager
def folder_for_a_copy(beside: Path | None = None) -> Iterator[Path]:
    """The name of a file in a folder of its own, gone afterwards: beside another file, or where temporary
    files are. Raises StartupError."""
    where = f"beside {beside}" if beside else "a temporary file"
    try:
        prefix = f".{beside.name}." if beside else "cloudhub-backup-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=beside.parent if beside else None) as folder:
            yield Path(folder) / "copy"
    except OSError as error:
        raise StartupError(f"cannot write {where}: {said_of(error)}") from error


def read_into(file: Path, pipe: BinaryIO) -> None:
    """All that comes through a pipe, as a file. Raises StartupError."""
    try:
        with file.open("wb") as copy:
            _pass_on(pipe, copy)
    except OSError as error:
        raise StartupError(f"the backup could not be read: {said_of(error)}") from error


def write_out(file: Path, pipe: BinaryIO) -> None:
    """A file into a pipe. Raises StartupError."""
    try:
        with file.open("rb") as copy:
            _pass_on(copy, pipe)
        pipe.flush()
    except OSError as error:
        raise StartupError(f"the backup could not be written: {said_of(error)}") from error


def _pass_on(source: BinaryIO, sink: BinaryIO) -> None:
    while chunk := source.read(CHUNK_BYTES):
        left = memoryview(chunk)
        while left:  # a pipe without a buffer takes less at a time
            left = left[sink.write(left) :]


def sync(path: Path) -> None:
    """On disk: a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def said_of(error: Exception) -> str:
    """What went wrong, without its number and its file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

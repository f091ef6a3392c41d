"""The files of a SQLite database: held by one process, and still the ones that were opened.

A file that is deleted or replaced under a process lives on without a name: what is committed to it is gone
with the process. SQLite itself does not look in WAL mode.
"""

import fcntl
import os
import struct
import sys
from pathlib import Path

from services.runtime.errors import StartupError, StoreUnavailable

# Beside the lock file, which an operator may take for a left-over: one byte of the database itself, far
# behind all that SQLite uses, locked by an open file description, since the locks of a process end when it
# closes any descriptor of the file.
_LOCKED_BYTE = 1 << 62
_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None
_ATTEMPTS = 10

_Identity = tuple[int, int]


class SqliteFiles:
    """Holds the files of the database `path` until `close`. Made before SQLite opens them; raises
    StartupError if another process has them or they cannot be there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(path.name + ".lock")
        self._database_name = str(path)
        self._wal_name = f"{path.resolve()}-wal"
        self._lock = self._locked_file()
        try:
            self._database = self._locked_database()
        except BaseException:
            os.close(self._lock)
            raise
        self._database_identity = _identity(os.fstat(self._database))
        self._wal_identity: _Identity | None = None

    def check(self) -> None:
        """Raises StoreUnavailable unless the files are those that were opened. Cheap: two calls of stat."""
        try:
            # Not by pathlib: after each transaction.
            if _identity(os.stat(self._database_name)) != self._database_identity:  # noqa: PTH116
                raise self._gone(self._database_name, "is another file than the one that was opened")
        except OSError as error:
            raise self._gone(self._database_name, f"cannot be found: {error.strerror}") from error
        try:
            wal = _identity(os.stat(self._wal_name))  # noqa: PTH116
        except OSError as error:
            # There is none before the first write.
            if self._wal_identity is not None:
                raise self._gone(self._wal_name, f"cannot be found: {error.strerror}") from error
            return
        if self._wal_identity is None:
            self._wal_identity = wal
        elif wal != self._wal_identity:
            raise self._gone(self._wal_name, "is another file than the one that was opened")

    @staticmethod
    def _gone(path: str, how: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{path} {how}; what is written now would be lost: put the file back, or restart the service"
        )

    def close(self) -> None:
        """Lets others have the files; SQLite must have closed them."""
        os.close(self._database)
        os.close(self._lock)

    def _locked_file(self) -> int:
        """The lock file, locked and still there."""
        for _ in range(_ATTEMPTS):
            try:
                lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise StartupError(f"cannot write beside the database {self._path}: {reason}") from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _identity(os.fstat(lock)) == _identity(self._lock_path.stat()):
                    return lock
            except FileNotFoundError:
                pass  # it was deleted meanwhile: the lock is on nothing
            except OSError as error:
                os.close(lock)
                raise self._in_use() from error
            os.close(lock)
        raise StartupError(f"{self._lock_path} is deleted again and again by another program")

    def _locked_database(self) -> int:
        try:
            database = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StartupError(f"cannot write the database {self._path}: {error.strerror}") from error
        if _OFD_SETLK is not None:
            wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _LOCKED_BYTE, 1, 0)
            try:
                fcntl.fcntl(database, _OFD_SETLK, wanted)
            except OSError as error:
                os.close(database)
                raise self._in_use() from error
        return database

    def _in_use(self) -> StartupError:
        return StartupError(
            f"database {self._path} is in use by another process; SQLite serves one replica of a service"
        )


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino

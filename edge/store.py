"""What an edge keeps on disk: objects, the history of what it applied, and its own uploads.

One SQLite file serves every node of the process. `commit` is one transaction and returns when it
is durable; whoever acknowledges does so after that. Blocking: `edge.writer` runs it in a thread.
"""

import fcntl
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edge.outbox import SetAside, Upload
from edge.protocol import Kind, Message, Step

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE object (
    node_id TEXT NOT NULL, resource TEXT NOT NULL, uid TEXT NOT NULL, version TEXT NOT NULL,
    operation TEXT NOT NULL, content BLOB NOT NULL, applied_n INTEGER NOT NULL,
    PRIMARY KEY (node_id, resource)
);
CREATE TABLE history (
    n INTEGER PRIMARY KEY, node_id TEXT NOT NULL, msg_id TEXT NOT NULL, uid TEXT NOT NULL,
    resource TEXT NOT NULL, version TEXT NOT NULL, operation TEXT NOT NULL, at_ms INTEGER NOT NULL
);
CREATE TABLE outbox (
    node_id TEXT NOT NULL, number INTEGER NOT NULL, msg_id TEXT NOT NULL, resource TEXT NOT NULL,
    content BLOB NOT NULL, at_ms INTEGER NOT NULL,
    PRIMARY KEY (node_id, number)
) WITHOUT ROWID;
CREATE TABLE upload_number (node_id TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
"""
# Beside the first schema, which an agent of before goes on with.
_SET_ASIDE = """
CREATE TABLE IF NOT EXISTS set_aside (
    node_id TEXT NOT NULL, number INTEGER NOT NULL, msg_id TEXT NOT NULL, resource TEXT NOT NULL,
    content BLOB NOT NULL, at_ms INTEGER NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (node_id, number)
) WITHOUT ROWID
"""
MAX_SET_ASIDE = 100
"""Uploads of a node that the hub does not take and that are kept; older ones go."""
# One statement for many rows: each statement gives up the interpreter lock once, and taking it back
# from a busy event loop costs far more than the rows.
_CHUNKS = (256, 64, 16, 4, 1)
_UPSERT_END = (
    " ON CONFLICT (node_id, resource) DO UPDATE SET uid = excluded.uid, version = excluded.version,"
    " operation = excluded.operation, content = excluded.content, applied_n = excluded.applied_n"
)


class StoreFault(Exception):
    """The file cannot be used or did not take a transaction; nothing of that transaction counts."""


class Change(NamedTuple):
    """One received message to be made durable."""

    node_id: str
    message: Message
    step: Step
    at_ms: int
    """When it came in, milliseconds since the Unix epoch."""
    link: Any = None
    """Where the acknowledgement goes; of no interest to the store."""


@dataclass(slots=True)
class Batch:
    """Everything that one transaction takes."""

    changes: list[Change] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)
    settled: list[Upload] = field(default_factory=list)
    """Uploads the hub has confirmed: their rows go."""
    set_aside: list[SetAside] = field(default_factory=list)
    """Uploads the hub does not take: they are kept apart."""

    def __bool__(self) -> bool:
        return bool(self.changes or self.uploads or self.settled or self.set_aside)


class StoredObject(NamedTuple):
    """A row of `object`; `applied_n` is the place in the order of arrival."""

    node_id: str
    resource: str
    uid: str
    version: str
    operation: str
    content: bytes
    applied_n: int


class Applied(NamedTuple):
    """A row of `history`: what was applied, in order of arrival `n`."""

    n: int
    node_id: str
    msg_id: str
    uid: str
    resource: str
    version: str
    operation: str
    at_ms: int


class EdgeStore:
    """One SQLite file, for one process. Raises StoreFault if the file cannot be used."""

    def __init__(
        self,
        path: Path,
        *,
        sync: Literal["full", "normal"] = "full",
        history: bool = True,
        most_history_rows: int = 5_000_000,
    ) -> None:
        self._history = history
        self._most_history_rows = most_history_rows
        self._lock = _lock(path)
        try:
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, cached_statements=64, timeout=5
            )
        except sqlite3.Error as error:
            self._lock.close()
            raise StoreFault(f"cannot open the database {path}: {error}") from error
        try:
            self._prepare(path, sync)
        except sqlite3.Error as error:
            self.close()
            raise StoreFault(f"cannot use the database {path}: {error}") from error
        except StoreFault:
            self.close()
            raise

    def _prepare(self, path: Path, sync: str) -> None:
        execute = self._connection.execute
        # Looked at before anything is set, so that somebody else's database stays as it is.
        version = execute("PRAGMA user_version").fetchone()[0]
        is_new = version == 0 and not execute("SELECT 1 FROM sqlite_master").fetchone()
        if not is_new and version != SCHEMA_VERSION:
            raise StoreFault(
                f"database {path} holds schema {version}, not {SCHEMA_VERSION} of an edge agent; "
                "name another file"
            )
        execute("PRAGMA journal_mode=WAL")
        execute(f"PRAGMA synchronous={sync}")
        execute("PRAGMA cache_size=-32768")
        execute("PRAGMA wal_autocheckpoint=4000")
        if is_new:
            self._connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT")
        execute(_SET_ASIDE)
        self._last_n: int = execute(
            "SELECT max(coalesce((SELECT max(n) FROM history), 0),"
            " coalesce((SELECT max(applied_n) FROM object), 0))"
        ).fetchone()[0]

    def commit(self, batch: Batch) -> None:
        """Makes a batch durable, in the order of its changes. Raises StoreFault; then nothing was."""
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                last_n = self._apply(batch)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreFault(f"the database did not take a transaction: {error}") from error
        self._last_n = last_n

    def _apply(self, batch: Batch) -> int:
        connection = self._connection
        upserts, deletes, history, last_n = _rows(batch.changes, self._last_n)
        if deletes:
            connection.executemany(
                "DELETE FROM object WHERE node_id = ? AND resource = ? AND (? OR uid = ?)", deletes
            )
        self._insert("object", 7, list(upserts), _UPSERT_END)
        if self._history and history:
            self._insert("history", 8, history)
            if last_n // 10_000 != self._last_n // 10_000:
                connection.execute("DELETE FROM history WHERE n <= ?", (last_n - self._most_history_rows,))
        self._insert("outbox", 6, batch.uploads)
        if batch.uploads:
            connection.executemany(
                "INSERT INTO upload_number VALUES (?, ?)"
                " ON CONFLICT (node_id) DO UPDATE SET last = max(last, excluded.last)",
                [(upload.node_id, upload.number) for upload in batch.uploads],
            )
        if batch.settled:
            connection.executemany(
                "DELETE FROM outbox WHERE node_id = ? AND number = ?",
                [(upload.node_id, upload.number) for upload in batch.settled],
            )
        for upload, reason in batch.set_aside:
            connection.execute(
                "DELETE FROM outbox WHERE node_id = ? AND number = ?", (upload.node_id, upload.number)
            )
            connection.execute(
                "INSERT OR REPLACE INTO set_aside VALUES (?, ?, ?, ?, ?, ?, ?)", (*upload, reason)
            )
            connection.execute(
                "DELETE FROM set_aside WHERE node_id = ? AND number NOT IN"
                " (SELECT number FROM set_aside WHERE node_id = ? ORDER BY number DESC LIMIT ?)",
                (upload.node_id, upload.node_id, MAX_SET_ASIDE),
            )
        return last_n

    def _insert(self, table: str, columns: int, rows: Sequence[Sequence[Any]], end: str = "") -> None:
        done = 0
        for size in _CHUNKS:
            while len(rows) - done >= size:
                values = ",".join([f"({','.join('?' * columns)})"] * size)
                self._connection.execute(
                    f"INSERT INTO {table} VALUES {values}{end}",
                    tuple(chain.from_iterable(rows[done : done + size])),
                )
                done += size

    def waiting_uploads(self) -> list[Upload]:
        """Uploads that the hub has not confirmed, by node, in order."""
        return [
            Upload(*row)
            for row in self._connection.execute(
                "SELECT node_id, number, msg_id, resource, content, at_ms FROM outbox"
                " ORDER BY node_id, number"
            )
        ]

    def last_upload_numbers(self) -> dict[str, int]:
        """The number of the last upload of each node that made any."""
        return dict(self._connection.execute("SELECT node_id, last FROM upload_number"))

    def close(self) -> None:
        """Closes the file and lets another process have it."""
        self._connection.close()
        self._lock.close()


def _rows(
    changes: Iterable[Change], last_n: int
) -> tuple[Iterable[tuple[Any, ...]], list[tuple[str, str, bool, str]], list[tuple[Any, ...]], int]:
    """What a batch comes to: deletes to run first, then one upsert per object; and history rows."""
    upserts: dict[tuple[str, str], tuple[Any, ...]] = {}
    deletes: list[tuple[str, str, bool, str]] = []
    history: list[tuple[Any, ...]] = []
    n = last_n
    for n, (node_id, message, step, at_ms, _) in enumerate(changes, last_n + 1):
        header, route = message.header, message.route
        resource, version, operation, uid = route.resource, header.resourceversion, route.operation, step.uid
        if step.kind is Kind.STORE:
            upserts[node_id, resource] = (node_id, resource, uid, version, operation, message.content, n)
        elif step.kind is Kind.DELETE:
            stored = upserts.get((node_id, resource))
            if stored is None:
                deletes.append((node_id, resource, not step.only_uid, uid))
            elif not step.only_uid or stored[2] == uid:
                del upserts[node_id, resource]
                deletes.append((node_id, resource, True, uid))
        history.append((n, node_id, header.msg_id, uid, resource, version, operation, at_ms))
    return upserts.values(), deletes, history, n


def _lock(path: Path) -> Any:
    try:
        lock = path.with_name(path.name + ".lock").open("a")
    except OSError as error:
        raise StoreFault(f"cannot write beside the database {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StoreFault(f"database {path} is in use by another edge agent; name another file") from None
    return lock


def _read(path: Path, query: str) -> Iterator[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        yield from connection.execute(query)


def read_objects(path: Path) -> list[StoredObject]:
    """What the nodes of a store hold; the agent may be running."""
    return [StoredObject(*row) for row in _read(path, "SELECT * FROM object ORDER BY node_id, resource")]


def read_set_aside(path: Path) -> list[SetAside]:
    """Uploads that the hub does not take, by node, in order; the agent may be running."""
    query = "SELECT node_id, number, msg_id, resource, content, at_ms, reason FROM set_aside ORDER BY 1, 2"
    return [SetAside(Upload(*row[:-1]), row[-1]) for row in _read(path, query)]


def read_history(path: Path) -> Iterator[Applied]:
    """What was applied, in order of arrival; the agent may be running."""
    for row in _read(path, "SELECT * FROM history ORDER BY n"):
        yield Applied(*row)

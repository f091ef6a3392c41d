"""The two stores of a stock edge: one by resource path, for which `edge.store` serves, and the one that its
metaserver reads, by apiVersion, kind, namespace and name."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

from edge.protocol import Kind
from edge.store import Batch, Change, EdgeStore, StoreFault
from harness.stock_edge.rules import MetaKey, meta_key, reaches_meta_store

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (
    node_id TEXT NOT NULL, api_version TEXT NOT NULL, kind TEXT NOT NULL, namespace TEXT NOT NULL,
    name TEXT NOT NULL, version TEXT NOT NULL, content BLOB NOT NULL,
    PRIMARY KEY (node_id, api_version, kind, namespace, name)
) WITHOUT ROWID
"""


def meta_file(database: Path) -> Path:
    """Where the second store of a fleet is, beside the first."""
    return database.with_name(database.name + ".meta")


class StockStores:
    """Both, for one process. Raises StoreFault if they cannot be used."""

    def __init__(self, path: Path, *, sync: Literal["full", "normal"], history: bool) -> None:
        self._by_path = EdgeStore(path, sync=sync, history=history)
        try:
            self._meta = sqlite3.connect(
                meta_file(path), isolation_level=None, check_same_thread=False, timeout=5
            )
            self._meta.execute("PRAGMA journal_mode=WAL")
            self._meta.execute(f"PRAGMA synchronous={sync}")
            self._meta.execute(_SCHEMA)
        except sqlite3.Error as error:
            self._by_path.close()
            raise StoreFault(f"cannot use the database {meta_file(path)}: {error}") from error

    def commit(self, batch: Batch) -> None:
        """Makes a batch durable in both. Raises StoreFault."""
        self._by_path.commit(batch)
        try:
            with self._meta:
                self._meta.execute("BEGIN IMMEDIATE")
                for change in batch.changes:
                    self._apply(change)
        except sqlite3.Error as error:
            raise StoreFault(f"the second store did not take a transaction: {error}") from error

    def _apply(self, change: Change) -> None:
        content = bytes(change.message.content)
        key = meta_key(content)
        if key is None:
            return  # a delete that names nothing leaves everything readable
        where = (change.node_id, key.api_version, key.kind, key.namespace, key.name)
        if change.step.kind is Kind.DELETE:
            self._meta.execute(
                "DELETE FROM meta WHERE node_id = ? AND api_version = ? AND kind = ? AND namespace = ?"
                " AND name = ?",
                where,
            )
        elif change.step.kind is Kind.STORE:
            version = change.message.header.resourceversion
            if reaches_meta_store(version):
                self._meta.execute(
                    "INSERT OR REPLACE INTO meta VALUES (?, ?, ?, ?, ?, ?, ?)", (*where, version, content)
                )

    def close(self) -> None:
        """Closes both files."""
        self._meta.close()
        self._by_path.close()


def read_meta(database: Path) -> Iterator[tuple[str, MetaKey, str]]:
    """Node, key and version of what programs of the nodes can read; the fleet may be running."""
    uri = f"{meta_file(database).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
        for node_id, api_version, kind, namespace, name, version in connection.execute(
            "SELECT node_id, api_version, kind, namespace, name, version FROM meta ORDER BY 1, 2, 3, 4, 5"
        ):
            yield node_id, MetaKey(api_version, kind, namespace, name), version

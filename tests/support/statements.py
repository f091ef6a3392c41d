"""One memory of compiled statements for all engines of the test process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.dialects.sqlite.pysqlite import dialect as sqlite_dialect


@contextmanager
def compiled_once() -> Iterator[None]:
    """Every store has an engine of its own, which compiles every statement anew: a tenth of all that tests
    of stores do. Two engines of one kind compile them alike."""
    memory: dict[Any, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        shared = property(lambda engine: memory, lambda engine, own: None)
        patch.setattr(Engine, "_compiled_cache", shared, raising=False)
        for kind in (asyncpg_dialect, sqlite_dialect):
            patch.setattr(kind, "__hash__", lambda dialect: hash(type(dialect)))
            patch.setattr(kind, "__eq__", lambda dialect, other: type(dialect) is type(other))
        yield

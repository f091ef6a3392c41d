"""What is said of the time limits that a database has in force: `services.runtime.bounded_connection`."""

import asyncio

import asyncpg
import pytest

from services.runtime.bounded_connection import bounded, missing, set_by
from tests.support.postgres import Databases

LIMITS = {"statement_timeout": "5000", "jit": "off"}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"statement_timeout": ("5000", "session"), "jit": ("off", "session")}, []),
        ({"statement_timeout": ("5000", "user"), "jit": ("off", "configuration file")}, []),
        (
            {"statement_timeout": ("0", "default"), "jit": ("off", "session")},
            ["statement_timeout should be 5000, is 0 by default"],
        ),
        ({"jit": ("off", "session")}, ["statement_timeout should be 5000, is unknown by nobody"]),
    ],
)
def test_a_limit_that_does_not_hold_is_named(found: dict[str, tuple[str, str]], words: list[str]) -> None:
    assert missing(LIMITS, found) == words


def test_it_is_told_who_sets_them() -> None:
    assert set_by({"a": ("1", "session"), "b": ("2", "session")}) == "transaction"
    assert set_by({"a": ("1", "user"), "b": ("2", "database user")}) == "role"
    assert set_by({"a": ("1", "session"), "b": ("2", "default")}) == "default, transaction"


async def test_a_transaction_that_began_without_its_limits_is_nobodys(databases: Databases) -> None:
    """PostgreSQL has begun it, asyncpg takes it for one that did not begin: what came next would find it."""
    url = await asyncio.to_thread(databases.empty)
    connection = await asyncpg.connect(url, connection_class=bounded({"statement_timeout": "'soon'"}))
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await connection.transaction().start()
    assert connection.is_closed()

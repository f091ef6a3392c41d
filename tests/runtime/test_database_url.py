"""URLs of databases: what can be read, and that nothing else is told of them."""

import asyncio
import os
import sys

import pytest
from sqlalchemy import text

from services.runtime.database_url import engine_of, hosts_of, shown, sqlite_path
from services.runtime.errors import StartupError, StoreUnavailable
from services.runtime.store_postgresql import PostgresStore

PASSWORD = "Xk7/9Lq2"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "postgresql://user:secret@one:5432,two/db?sslmode=require&password=x",
            "postgresql://one:5432,two/db",
        ),
        ("postgresql://one/db", "postgresql://one/db"),
        ("postgresql://u:p%40ss@[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("postgresql://u@%2Frun%2Fpostgresql/db", "postgresql://%2Frun%2Fpostgresql/db"),
    ],
)
def test_a_url_is_told_without_user_password_and_query(url: str, told: str) -> None:
    assert engine_of(url) == "postgresql"
    assert shown(url) == told


def test_each_host_has_a_url_whose_password_every_reader_finds() -> None:
    assert hosts_of("postgresql://u:p^%40:s%s@one:1,two/db?sslmode=require") == [
        "postgresql://u:p%5E%40%3As%25s@one:1/db?sslmode=require",
        "postgresql://u:p%5E%40%3As%25s@two/db?sslmode=require",
    ]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://hub:pa#ss@host/hub",
        f"postgresql://hub:{PASSWORD}@host/hub",
        "postgresql://hub:[pass]@host/hub",
        "postgresql://hub:pa@ss@host/hub",
        "postgresql://hub:pass@host",
        "postgresql://hub:pass@host:port/hub",
        "postgresql://hub:pass@host:99999/hub",
        "postgresql://hub:pass@host/hub?",
        "postgresql:///hub",
        "postgresql://",
        "postgres://hub:pass@host/hub",
        "hub:pass@host/hub",
        "",
    ],
)
def test_a_url_that_cannot_be_read_is_one_sentence_that_tells_nothing_of_it(url: str) -> None:
    """C53."""
    for read in (engine_of, hosts_of, shown, sqlite_path):
        with pytest.raises(StartupError, match="percent-encode the password") as said:
            read(url)
        assert not any(
            part in str(said.value) for part in ("hub", ":pass", "[pass", "pa#", "host", "Xk7", "9Lq2")
        )


def test_a_file_is_named_whole() -> None:
    assert str(sqlite_path("sqlite:////var/lib/hub@1/x%20[y].db?mode=ro")) == "/var/lib/hub@1/x%20[y].db"
    for none in ("sqlite:///", "sqlite:///:memory:"):
        with pytest.raises(StartupError, match="a file is needed"):
            sqlite_path(none)


async def _ended(*arguments: str, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.sessions", *arguments),
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode in (1, 2), said
    return said.decode()


async def test_a_process_and_its_migration_tell_nothing_of_a_password() -> None:
    """C53."""
    loopback = ("--grpc-insecure-loopback=true", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0")
    url = f"postgresql://hub:{PASSWORD}@host/hub"
    for said in await asyncio.gather(
        _ended(*loopback, "--database", url),
        _ended(*loopback, CLOUDHUB_SESSIONS_DATABASE=url),
        _ended("migrate", "--database", url),
    ):
        assert said.count("\n") == 1, said
        assert "percent-encode the password" in said
        assert "Xk7" not in said
        assert "9Lq2" not in said


async def test_what_the_driver_does_not_take_of_a_url_is_told_without_it() -> None:
    store = PostgresStore("postgresql://u:p@127.0.0.1/d?sslmode=Xk79Lq2s")
    with pytest.raises(StoreUnavailable, match="behind the \\? of its URL") as said:
        await store.write(lambda connection: connection.execute(text("SELECT 1")))
    assert said.value.__cause__ is None
    await store.close()

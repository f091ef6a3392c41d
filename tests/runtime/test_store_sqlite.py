"""One transaction that writes and one that reads at a time: `services.runtime.store_sqlite`."""

import asyncio
import threading
from pathlib import Path

from sqlalchemy import Connection, text

from services.runtime.store_sqlite import SqliteStore


async def test_writes_queue_up_and_reads_go_on_meanwhile(tmp_path: Path) -> None:
    """A transaction that lasts holds up the next one that writes and nobody who reads."""
    store = SqliteStore(tmp_path / "hub.db")
    await store.write(lambda connection: connection.execute(text("CREATE TABLE x (n INTEGER)")))
    begun, release, threads = threading.Event(), threading.Event(), set()

    def slow(connection: Connection) -> None:
        connection.execute(text("INSERT INTO x VALUES (1)"))
        threads.add(threading.get_ident())
        begun.set()
        assert release.wait(10)

    def quick(connection: Connection) -> None:
        threads.add(threading.get_ident())
        connection.execute(text("INSERT INTO x VALUES (2)"))

    def count(connection: Connection) -> int:
        return int(connection.execute(text("SELECT count(*) FROM x")).scalar_one())

    writing = [asyncio.ensure_future(store.write(slow))]
    await asyncio.to_thread(begun.wait, 10)
    writing += [asyncio.ensure_future(store.write(quick)) for _ in range(20)]
    assert [await asyncio.wait_for(store.read(count), 5) for _ in range(3)] == [0, 0, 0]
    assert not any(one.done() for one in writing)
    release.set()
    await asyncio.wait_for(asyncio.gather(*writing), 10)
    assert len(threads) == 1
    assert await store.read(count) == 21
    await store.close()

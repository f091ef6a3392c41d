"""The table of uploads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, MetaData, Table, create_engine, update

from services.dispatcher.upstream.shares import Amount
from services.dispatcher.upstream.uploads import (
    RELEASED,
    LoadedUploads,
    LoadWanted,
    TakenOver,
    UploadRow,
    count_elsewhere,
    count_held,
    count_nodes,
    delete_uploads,
    epoch_and_n,
    load_uploads,
    nodes_of,
    oldest_n,
    other_holders,
    place_of,
    release,
    store_uploads,
    stored_ids,
    take_over,
    upload_table,
)
from tests.support.upstream import upload

METADATA = MetaData()
TABLE: Table = upload_table(METADATA)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    engine = create_engine(f"sqlite:///{tmp_path / 'uploads.db'}")
    METADATA.create_all(engine)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def row(
    node_id: str, n: int, number: int | None = None, size: int = 10, epoch: int = 7, holder: str = "d1"
) -> UploadRow:
    return UploadRow(node_id, n, epoch, size, upload(n if number is None else number), holder)


def at(n: int, epoch: int = 7) -> int:
    return place_of(epoch, n)


def wanted(node_id: str = "a", after: int = 0, limit: int = 100, most_bytes: int = 1 << 30) -> LoadWanted:
    return LoadWanted(node_id, at(after) if after else 0, limit, most_bytes)


def load(connection: Connection, which: LoadWanted, holder: str = "d1") -> LoadedUploads:
    return load_uploads(connection, TABLE, holder, which)


def held(connection: Connection, holder: str) -> int:
    return sum(amount.messages for amount in count_held(connection, TABLE, holder).values())


def test_rows_come_back_as_they_were_stored(connection: Connection) -> None:
    rows = [row("a", 1), row("b", 2), row("a", 3)]
    assert store_uploads(connection, TABLE, rows) == {("a", at(1)), ("b", at(2)), ("a", at(3))}
    loaded = load(connection, wanted())
    assert loaded.rows == [rows[0], rows[2]]
    assert (loaded.is_all, loaded.reached) == (True, at(3))
    assert store_uploads(connection, TABLE, []) == set()


def test_a_message_id_is_stored_once_per_node(connection: Connection) -> None:
    """C31: an edge that repeats an upload does not store it twice."""
    store_uploads(connection, TABLE, [row("a", 1, number=5)])
    again = [row("a", 2, number=5), row("a", 3, number=6), row("a", 4, number=6), row("b", 5, number=5)]
    assert store_uploads(connection, TABLE, again) == {("a", at(3)), ("b", at(5))}
    assert [one.n for one in load(connection, wanted()).rows] == [1, 3]


def test_a_commit_that_is_run_again_counts_its_own_rows_as_stored(connection: Connection) -> None:
    rows = [row("a", 1), row("a", 2)]
    store_uploads(connection, TABLE, rows)
    assert store_uploads(connection, TABLE, rows) == {("a", at(1)), ("a", at(2))}


def test_loading_stops_at_the_limit_and_at_the_size(connection: Connection) -> None:
    store_uploads(connection, TABLE, [row("a", n, size=100) for n in range(1, 6)])
    by_limit = load(connection, wanted(after=1, limit=2))
    assert ([one.n for one in by_limit.rows], by_limit.is_all, by_limit.reached) == ([2, 3], False, at(3))
    by_size = load(connection, wanted(most_bytes=150))
    assert ([one.n for one in by_size.rows], by_size.is_all) == ([1, 2], False)
    assert [one.n for one in load(connection, wanted(most_bytes=0)).rows] == [1]
    rest = load(connection, wanted(after=4, limit=2))
    assert ([one.n for one in rest.rows], rest.is_all) == ([5], True)


def test_nothing_to_load_is_said(connection: Connection) -> None:
    loaded = load(connection, wanted("nobody", after=4))
    assert (loaded.rows, loaded.is_all, loaded.reached) == ([], True, at(4))


def test_a_row_that_is_no_message_is_reported_and_skipped(connection: Connection) -> None:
    """C29: bad database content harms nothing else."""
    store_uploads(connection, TABLE, [row("a", n) for n in (1, 2, 3)])
    connection.execute(update(TABLE).where(TABLE.c.n == 2).values(message=b"\xff\xff\xff"))
    loaded = load(connection, wanted())
    assert [one.n for one in loaded.rows] == [1, 3]
    assert loaded.unreadable == [at(2)]


def test_deleting_what_is_gone_is_no_error(connection: Connection) -> None:
    store_uploads(connection, TABLE, [row("a", 1), row("a", 2), row("b", 3)])
    delete_uploads(connection, TABLE, [])
    for _ in range(2):
        delete_uploads(connection, TABLE, [("a", at(1)), ("b", at(99))])
    assert held(connection, "d1") == 2


def test_a_place_is_an_epoch_and_a_number_and_sorts_by_them() -> None:
    places = [place_of(1, 5), place_of(1, 2**60), place_of(2, 1), place_of(2**45, 0)]
    assert places == sorted(places)
    assert [epoch_and_n(place) for place in places] == [(1, 5), (1, 2**60), (2, 1), (2**45, 0)]
    assert epoch_and_n(-1) == (0, 0)


def test_uploads_of_an_earlier_epoch_come_first_whatever_their_number(connection: Connection) -> None:
    """C31: numbers are each dispatcher's own; a node's epochs are in the order of its sessions."""
    store_uploads(connection, TABLE, [row("a", 900, epoch=1), row("a", 3, epoch=2), row("a", 1, epoch=3)])
    assert [one.epoch for one in load(connection, wanted()).rows] == [1, 2, 3]
    later = LoadWanted("a", at(900, epoch=1), 10, 1000)
    assert [one.epoch for one in load(connection, later).rows] == [2, 3]


def test_each_holder_loads_its_own_rows(connection: Connection) -> None:
    store_uploads(connection, TABLE, [row("a", 1), row("a", 2, holder="d2"), row("b", 3, holder="d3")])
    assert [one.n for one in load(connection, wanted()).rows] == [1]
    assert [one.n for one in load(connection, wanted(), "d2").rows] == [2]
    assert other_holders(connection, TABLE, "d1") == ["d2", "d3"]
    assert other_holders(connection, TABLE, "d4") == ["d1", "d2", "d3"]
    assert [held(connection, holder) for holder in ("d1", "d4")] == [1, 0]


def test_a_nodes_rows_are_taken_over_from_whoever_has_them(connection: Connection) -> None:
    """C31: the node's session has moved here."""
    store_uploads(connection, TABLE, [row("a", 1), row("a", 2, holder="d2"), row("b", 3, holder="d2")])
    assert take_over(connection, TABLE, "d3", nodes=["a"]) == [TakenOver("a", 2, 20, at(1), at(2))]
    assert take_over(connection, TABLE, "d3", nodes=["a"]) == []
    assert [one.n for one in load(connection, wanted(), "d3").rows] == [1, 2]
    assert other_holders(connection, TABLE, "d3") == ["d2"]


def test_rows_of_one_that_is_gone_are_taken_over_once(connection: Connection) -> None:
    """C35: of two that try, the later finds nothing."""
    store_uploads(connection, TABLE, [row("a", 1), row("b", 2), row("b", 3), row("a", 4, holder="d2")])
    nodes = nodes_of(connection, TABLE, "d1", 10)
    assert nodes == ["a", "b"]
    assert nodes_of(connection, TABLE, "d1", 1) == ["a"]
    taken = take_over(connection, TABLE, "d2", nodes=nodes, former="d1")
    assert taken == [TakenOver("a", 1, 10, at(1), at(1)), TakenOver("b", 2, 20, at(2), at(3))]
    assert take_over(connection, TABLE, "d3", nodes=nodes, former="d1") == []
    assert held(connection, "d2") == 4


def test_what_was_released_has_a_holder_that_nobody_is(connection: Connection) -> None:
    store_uploads(connection, TABLE, [row("a", 1), row("b", 2, holder="d2")])
    release(connection, TABLE, "d1")
    assert other_holders(connection, TABLE, "d2") == [RELEASED]


def test_an_upload_repeated_at_another_dispatcher_is_stored_once(connection: Connection) -> None:
    """C31: the first one counts, whoever holds it."""
    store_uploads(connection, TABLE, [row("a", 1, number=5)])
    assert store_uploads(connection, TABLE, [row("a", 1, number=5, epoch=8, holder="d2")]) == set()


def test_an_empty_table_counts_nothing(connection: Connection) -> None:
    assert held(connection, "d1") == 0
    assert take_over(connection, TABLE, "d1") == []
    assert other_holders(connection, TABLE, "d1") == []


def test_what_is_stored_is_counted_by_node_by_holder_and_by_age(connection: Connection) -> None:
    """C46: in rows and in bytes, whoever holds them."""
    assert count_elsewhere(connection, TABLE, "d1") == Amount()
    assert oldest_n(connection, TABLE, "d1") == 0
    rows = [row("a", 5, size=100), row("a", 7, size=20, holder="d2"), row("b", 6, size=3)]
    store_uploads(connection, TABLE, rows)
    assert count_nodes(connection, TABLE, ["a", "b", "c"]) == {
        "a": Amount(2, 120),
        "b": Amount(1, 3),
        "c": Amount(),
    }
    assert count_held(connection, TABLE, "d1") == {"a": Amount(1, 100), "b": Amount(1, 3)}
    assert count_elsewhere(connection, TABLE, "d1") == Amount(1, 20)
    assert [oldest_n(connection, TABLE, holder) for holder in ("d1", "d2")] == [5, 7]


def test_which_of_some_uploads_are_stored_already(connection: Connection) -> None:
    """C46: a repeat needs no room."""
    store_uploads(connection, TABLE, [row("a", 1), row("b", 2, holder="d2")])
    asked = [("a", "upload-1"), ("a", "upload-2"), ("b", "upload-2"), ("c", "upload-1")]
    assert stored_ids(connection, TABLE, asked) == {("a", "upload-1"), ("b", "upload-2")}
    assert stored_ids(connection, TABLE, []) == set()


def test_counting_reads_no_message(connection: Connection) -> None:
    """C46: an index holds all that is counted, so that it takes no longer when messages are large."""
    query = (
        f"SELECT node_id, count(*), sum(size_bytes), min(n) FROM {TABLE} WHERE holder = 'd1' GROUP BY node_id"
    )
    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all()
    assert all("USING COVERING INDEX upload_held" in step[3] for step in plan), plan

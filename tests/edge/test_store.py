"""The edge's database: what a transaction leaves, and what opening it refuses."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.outbox import SetAside, Upload
from edge.protocol import Header, Message, Route, decide
from edge.store import Batch, Change, EdgeStore, StoreFault, read_history, read_objects, read_set_aside


def change(
    operation: str,
    resource: str = "default/configmap/cm1",
    uid: str = "",
    version: str = "1",
    node: str = "n1",
) -> Change:
    content = json.dumps({"metadata": {"uid": uid} if uid else {}, "version": version}).encode()
    message = Message(
        Header(f"m-{version}", "", 0, version),
        Route("edgecontroller", "resource", operation, resource),
        msgspec.Raw(content),
    )
    return Change(node, message, decide(message, ()), 1234)


def upload(number: int, node: str = "n1") -> Upload:
    return Upload(node, number, f"u-{node}-{number}", "telemetry", b'{"a":1}', 99)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


@pytest.fixture
def store(path: Path) -> Iterator[EdgeStore]:
    with closing(EdgeStore(path)) as opened:
        yield opened


def held(path: Path) -> list[tuple[str, str, str, str]]:
    return [(row.node_id, row.resource, row.uid, row.version) for row in read_objects(path)]


def test_a_stored_object_has_its_content_as_it_came(store: EdgeStore, path: Path) -> None:
    store.commit(Batch([change("insert", uid="u", version="7")]))
    (row,) = read_objects(path)
    assert row.content == b'{"metadata": {"uid": "u"}, "version": "7"}'
    assert (row.uid, row.version, row.operation, row.applied_n) == ("u", "7", "insert", 1)


def test_an_older_version_replaces_a_newer_one(store: EdgeStore, path: Path) -> None:
    """An edge does not compare versions: keeping them in order is the hub's duty."""
    store.commit(Batch([change("update", version="101"), change("update", version="99")]))
    assert held(path) == [("n1", "default/configmap/cm1", "", "99")]


def test_nodes_keep_objects_of_one_name_apart(store: EdgeStore, path: Path) -> None:
    store.commit(Batch([change("insert", node="n1", version="1"), change("insert", node="n2", version="2")]))
    store.commit(Batch([change("delete", node="n1")]))
    assert held(path) == [("n2", "default/configmap/cm1", "", "2")]


def test_a_late_delete_of_an_older_pod_leaves_the_new_one(store: EdgeStore, path: Path) -> None:
    """C15."""
    pod = "default/pod/p1"
    store.commit(Batch([change("insert", pod, "uid-2")]))
    store.commit(Batch([change("delete", pod, "uid-1")]))
    assert held(path) == [("n1", pod, "uid-2", "1")]
    store.commit(Batch([change("delete", pod, "uid-2")]))
    assert held(path) == []


def test_a_late_delete_of_anything_else_takes_the_new_one_too(store: EdgeStore, path: Path) -> None:
    store.commit(Batch([change("insert", uid="uid-2"), change("delete", uid="uid-1")]))
    assert held(path) == []


def test_the_history_tells_everything_in_order_of_arrival(store: EdgeStore, path: Path) -> None:
    store.commit(Batch([change("insert", version="1", uid="u"), change("update", version="2")]))
    store.commit(Batch([change("delete", version="3", node="n2")]))
    rows = [
        (row.n, row.node_id, row.operation, row.version, row.uid, row.at_ms) for row in read_history(path)
    ]
    assert rows == [
        (1, "n1", "insert", "1", "u", 1234),
        (2, "n1", "update", "2", "", 1234),
        (3, "n2", "delete", "3", "", 1234),
    ]


def test_the_order_goes_on_after_a_restart(path: Path) -> None:
    for version in ("1", "2"):
        with closing(EdgeStore(path)) as store:
            store.commit(Batch([change("update", version=version)]))
    assert [(row.n, row.version) for row in read_history(path)] == [(1, "1"), (2, "2")]


def test_without_history_only_objects_are_kept(path: Path) -> None:
    for version in ("1", "2"):
        with closing(EdgeStore(path, history=False, sync="normal")) as store:
            store.commit(Batch([change("update", version=version)]))
    assert list(read_history(path)) == []
    assert [row.applied_n for row in read_objects(path)] == [2]


def test_the_history_is_bounded(path: Path) -> None:
    with closing(EdgeStore(path, most_history_rows=100)) as store:
        store.commit(Batch([change("update", version=str(n)) for n in range(10_050)]))
        rows = list(read_history(path))
        assert (rows[0].n, rows[-1].n) == (9_951, 10_050)


def test_a_large_batch_is_stored_whole(store: EdgeStore, path: Path) -> None:
    store.commit(Batch([change("insert", f"default/configmap/c{n}") for n in range(1000)]))
    assert len(read_objects(path)) == 1000


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "update", "delete"]),
        st.sampled_from(["default/pod/p1", "default/configmap/c1"]),
        st.sampled_from(["", "u1", "u2"]),
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(batches=st.lists(OPERATIONS, min_size=1, max_size=3))
def test_a_batch_leaves_what_its_changes_one_by_one_would(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, str, str]]]
) -> None:
    path = tmp_path_factory.mktemp("store") / "edge.db"
    expected: dict[str, tuple[str, str]] = {}
    version = 0
    with closing(EdgeStore(path, sync="normal")) as store:
        for operations in batches:
            batch = Batch()
            for operation, resource, uid in operations:
                version += 1
                batch.changes.append(change(operation, resource, uid, str(version)))
                if operation != "delete":
                    expected[resource] = (uid, str(version))
                elif resource in expected and (
                    "/pod/" not in resource or not uid or expected[resource][0] == uid
                ):
                    del expected[resource]
            store.commit(batch)
    assert {row.resource: (row.uid, row.version) for row in read_objects(path)} == expected


def test_uploads_and_their_numbers_survive_a_restart(path: Path) -> None:
    """C31."""
    with closing(EdgeStore(path)) as store:
        store.commit(Batch(uploads=[upload(1), upload(2), upload(1, "n2")]))
        store.commit(Batch(settled=[upload(1), upload(2)]))
    with closing(EdgeStore(path)) as store:
        assert store.waiting_uploads() == [upload(1, "n2")]
        assert store.last_upload_numbers() == {"n1": 2, "n2": 1}


def test_a_transaction_that_fails_leaves_nothing(store: EdgeStore, path: Path) -> None:
    store.commit(Batch(uploads=[upload(1)]))
    with pytest.raises(StoreFault, match="UNIQUE constraint failed"):
        store.commit(Batch([change("insert")], uploads=[upload(2), upload(1)]))
    assert held(path) == []
    assert store.waiting_uploads() == [upload(1)]
    store.commit(Batch([change("insert")]))
    assert [row.n for row in read_history(path)] == [1]


def test_a_batch_knows_whether_it_has_work() -> None:
    assert not Batch()
    assert Batch(settled=[upload(1)])


def test_a_second_agent_on_the_same_file_is_refused(store: EdgeStore, path: Path) -> None:
    with pytest.raises(StoreFault, match="in use by another edge agent"):
        EdgeStore(path)
    store.commit(Batch([change("insert")]))


def test_a_file_that_is_no_database_is_refused_and_stays(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to have a header" * 20)
    before = path.read_bytes()
    with pytest.raises(StoreFault, match="cannot use the database"):
        EdgeStore(path)
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_refused_and_stays(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE precious (a)")
    before = path.read_bytes()
    with pytest.raises(StoreFault, match="not 1 of an edge agent"):
        EdgeStore(path)
    assert path.read_bytes() == before


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreFault, match="cannot open the database"):
        EdgeStore(tmp_path)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreFault, match="cannot write beside the database"):
        EdgeStore(tmp_path / "nowhere" / "edge.db")


def test_what_is_set_aside_is_out_of_the_outbox_and_bounded_per_node(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C43."""
    monkeypatch.setattr("edge.store.MAX_SET_ASIDE", 2)
    uploads = [Upload("edge-1", number, f"m-{number}", "telemetry", b"{}", 5) for number in range(1, 5)]
    other = Upload("edge-2", 1, "m-9", "telemetry", b"{}", 5)
    with closing(EdgeStore(path)) as store:
        store.commit(Batch(uploads=[*uploads, other]))
        refused = [SetAside(one, f"why {one.number}") for one in (*uploads[:3], other)]
        store.commit(Batch(set_aside=refused))
        assert store.waiting_uploads() == [uploads[3]]
    with closing(EdgeStore(path)) as store:
        assert store.waiting_uploads() == [uploads[3]]
    assert read_set_aside(path) == [*refused[1:3], refused[3]]


def test_a_file_of_before_gets_the_table_and_goes_on(path: Path) -> None:
    """C43: and an agent of before goes on with a file that has it."""
    with closing(EdgeStore(path)) as store:
        store.commit(Batch(uploads=[Upload("edge-1", 1, "m-1", "telemetry", b"{}", 5)]))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE set_aside")
    with closing(EdgeStore(path)) as store:
        assert len(store.waiting_uploads()) == 1
    assert read_set_aside(path) == []

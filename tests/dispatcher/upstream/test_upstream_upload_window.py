"""Stored uploads: what is in memory, in which order it leaves, and what waits behind."""

from collections import defaultdict
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream import upload_window
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.upload_window import SettledIds, UploadWindow, WindowBounds

SMALL = WindowBounds(
    per_node=4,
    bytes_per_node=1000,
    total=16,
    bytes_total=1600,
    per_load=2,
    nodes_per_load=2,
    bytes_per_load=100,
)
TIGHT = replace(SMALL, total=6, bytes_total=400)


def stored(node: str, place: int, size: int = 1) -> Parcel:
    return Parcel("router", node, 1, Message(id=str(place)), size, Kind.UPLOAD, place=place)


def told(node: str, name: str) -> Parcel:
    return Parcel("router", node, 1, Message(id=name), 1, Kind.EVENT)


class Disk:
    """The model of the store beside a real window; `queued` is what subscribers would get, in order."""

    def __init__(self, bounds: WindowBounds = SMALL) -> None:
        self.window = UploadWindow(bounds)
        self.rows: dict[str, list[int]] = defaultdict(list)
        self.unstored: list[tuple[str, int, bool]] = []
        self.queued: list[Parcel] = []
        self.unsettled: list[Parcel] = []
        self.place = 0

    def receive(self, node: str, *, is_new: bool = True) -> None:
        self.place += 1
        self.window.expect(node, self.place)
        self.unstored.append((node, self.place, is_new))

    def commit(self, count: int = 1) -> None:
        for node, place, is_new in self.unstored[:count]:
            if is_new:
                self.rows[node].append(place)
            self._queue(self.window.stored(stored(node, place), is_new=is_new))
        del self.unstored[:count]

    def tell(self, node: str) -> None:
        self._queue(self.window.pass_event(told(node, f"after {self.place}"), self.place))

    def load(self, *, most_rows: int = 100) -> bool:
        loads = self.window.wanted()
        for load in loads:
            rows = [place for place in self.rows[load.node_id] if place > load.after]
            cut = min(load.limit, most_rows)
            found = rows[:cut]
            reached = max(load.through, *rows, load.after) if len(rows) <= cut else found[-1]
            parcels = [stored(load.node_id, place) for place in found]
            self._queue(self.window.loaded(load, parcels, reached))
        return bool(loads)

    def settle(self, index: int = 0) -> None:
        parcel = self.unsettled.pop(index % len(self.unsettled))
        self.rows[parcel.node_id].remove(parcel.place)
        self.window.settled(parcel)

    def drain(self) -> None:
        self.commit(len(self.unstored))
        while self.unsettled or self.load():
            while self.unsettled:
                self.settle()

    def order(self, node: str) -> list[str]:
        return [one.message.id for one in self.queued if one.node_id == node]

    def _queue(self, parcels: list[Parcel]) -> None:
        self.queued += parcels
        self.unsettled += [one for one in parcels if one.kind is Kind.UPLOAD]


def test_uploads_beyond_the_window_stay_on_disk_and_come_in_order() -> None:
    """C31: memory is bounded, order per node holds."""
    disk = Disk()
    for _ in range(10):
        disk.receive("a")
    disk.commit(10)
    assert disk.order("a") == ["1", "2", "3", "4"]
    assert not disk.load()
    disk.settle()
    disk.settle()
    assert disk.load()
    assert disk.order("a") == ["1", "2", "3", "4", "5", "6"]
    disk.drain()
    assert disk.order("a") == [str(number) for number in range(1, 11)]
    assert (len(disk.window), disk.window.in_memory) == (0, 0)


def test_a_full_node_leaves_room_for_another() -> None:
    disk = Disk()
    for _ in range(10):
        disk.receive("a")
    disk.receive("b")
    disk.commit(11)
    assert disk.order("b") == ["11"]


def test_the_window_of_all_nodes_is_bounded_too() -> None:
    disk = Disk(TIGHT)
    for node in "abcdefgh":
        disk.receive(node)
    disk.commit(8)
    assert disk.window.in_memory == 6
    disk.settle()
    disk.settle()
    disk.settle()
    disk.load()
    assert disk.window.in_memory == 5
    assert disk.order("g") == ["7"]
    assert disk.order("h") == ["8"]


def fill(window: UploadWindow, node: str, size: int, count: int = 100) -> int:
    """How many of a node's uploads come into memory."""
    got = 0
    for place in range(1, count + 1):
        window.expect(node, place)
        got += bool(window.stored(stored(node, place, size), is_new=True))
    return got


def test_bytes_in_memory_have_a_share_for_each_node() -> None:
    """C46: few with large uploads cannot use the memory up; others' come into it at once."""
    window = UploadWindow(WindowBounds())
    mib = 1024 * 1024
    kept = [fill(window, f"greedy-{number}", mib) for number in range(20)]
    assert kept[:4] == [8] * 4
    assert min(kept) >= 1
    assert window.size_bytes <= (48 + 16) * mib
    window = UploadWindow(WindowBounds())
    assert [fill(window, f"greedy-{number}", mib) for number in range(8)][-1] < 8
    for number in range(4):
        assert fill(window, f"calm-{number}", mib, 1) == 1
    for number in range(100):
        assert fill(window, f"small-{number}", 1024, 10) >= 1, "the rest comes when that is settled"


def test_a_node_that_was_passed_over_is_loaded_when_others_are_settled() -> None:
    """C46: however many have uploads on disk only."""
    disk = Disk(TIGHT)
    nodes = [f"n{number}" for number in range(2 * upload_window.LOOKS_PER_LOAD)]
    for node in nodes:
        disk.receive(node)
    disk.commit(len(nodes))
    assert disk.window.in_memory == 6
    disk.drain()
    assert {one.node_id for one in disk.queued} == set(nodes)


def test_bytes_in_memory_are_bounded() -> None:
    window = UploadWindow(replace(SMALL, bytes_total=1000))
    for place in (1, 2):
        window.expect("a", place)
    assert window.stored(stored("a", 1, size=1000), is_new=True) != []
    assert window.stored(stored("a", 2, size=1), is_new=True) == []
    assert window.wanted() == []
    window.settled(stored("a", 1, size=1000))
    assert [load.after for load in window.wanted()] == [1]


def test_rows_found_at_start_are_loaded_in_turn() -> None:
    """C31: what an earlier process stored comes before what the node sends now."""
    disk = Disk()
    disk.rows |= {"a": [-9, -8, -7], "b": [-6], "c": [-5]}
    for node in "abc":
        disk.window.found(node, -10, disk.rows[node][-1])
    disk.receive("a")
    disk.commit()
    assert disk.queued == []
    disk.load()
    assert (disk.order("a"), disk.order("b"), disk.order("c")) == (["-9", "-8"], ["-6"], [])
    disk.drain()
    assert (disk.order("a"), disk.order("b"), disk.order("c")) == (["-9", "-8", "-7", "1"], ["-6"], ["-5"])


def test_rows_that_vanished_do_not_stop_the_rest() -> None:
    window = UploadWindow(SMALL)
    window.found("a", -10, -5)
    (load,) = window.wanted()
    assert window.loaded(load, [], load.through) == []
    assert window.wanted() == []
    assert len(window) == 0


def test_an_event_waits_for_the_uploads_before_it_and_for_no_other() -> None:
    """C8: `disconnected` comes after the session's last upload, `connected` before the next one's first."""
    disk = Disk()
    disk.tell("a")
    assert disk.order("a") == ["after 0"]
    disk.receive("a")
    disk.receive("b")
    disk.receive("a")
    disk.tell("a")
    disk.tell("a")
    disk.receive("a")
    disk.commit(2)
    assert disk.order("a") == ["after 0", "1"]
    disk.commit(2)
    assert disk.order("a") == ["after 0", "1", "3", "after 3", "after 3", "4"]


def test_an_event_waits_for_uploads_that_are_on_disk_only() -> None:
    disk = Disk()
    for _ in range(6):
        disk.receive("a")
    disk.commit(6)
    disk.tell("a")
    disk.receive("a")
    disk.commit()
    disk.drain()
    assert disk.order("a") == ["1", "2", "3", "4", "5", "6", "after 6", "7"]


def test_a_repeat_is_not_queued_and_holds_nothing_up() -> None:
    disk = Disk()
    disk.receive("a")
    disk.receive("a", is_new=False)
    disk.tell("a")
    disk.commit()
    assert disk.order("a") == ["1"]
    disk.commit()
    assert disk.order("a") == ["1", "after 2"]
    disk.receive("b", is_new=False)
    disk.commit()
    assert disk.order("b") == []
    disk.drain()
    assert len(disk.window) == 0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("receive"), st.sampled_from("abc"), st.sampled_from([True, True, True, False])),
            st.tuples(st.just("tell"), st.sampled_from("abc")),
            st.tuples(st.just("commit"), st.integers(1, 4)),
            st.tuples(st.just("load"), st.integers(1, 3)),
            st.tuples(st.just("settle"), st.integers(0, 10)),
        ),
        max_size=80,
    )
)
def test_every_upload_and_event_leaves_once_in_order(steps: list[tuple[object, ...]]) -> None:
    """C8, C31: whatever the interleaving of arrivals, commits, loads and settlements."""
    disk = Disk(TIGHT)
    expected: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        match step:
            case ("receive", str(node), bool(is_new)):
                disk.receive(node, is_new=is_new)
                if is_new:
                    expected[node].append(str(disk.place))
            case ("tell", str(node)):
                expected[node].append(f"after {disk.place}")
                disk.tell(node)
            case ("commit", int(count)):
                disk.commit(count)
            case ("load", int(most_rows)):
                disk.load(most_rows=most_rows)
            case ("settle", int(index)) if disk.unsettled:
                disk.settle(index)
            case _:
                pass
        assert disk.window.in_memory == len(disk.unsettled) <= TIGHT.total
        for node in "abc":
            assert disk.order(node) == expected[node][: len(disk.order(node))]
    disk.drain()
    for node in "abc":
        assert disk.order(node) == expected[node]
    assert (len(disk.window), disk.window.in_memory) == (0, 0)


def test_settled_ids_are_remembered_for_a_while() -> None:
    settled = SettledIds()
    settled.add("a", "1", 0.0)
    assert ("a", "1") in settled
    assert ("b", "1") not in settled
    settled.add("a", "2", upload_window.REMEMBERED_SECONDS + 1)
    assert ("a", "1") not in settled
    assert len(settled) == 1


def test_settled_ids_are_bounded() -> None:
    settled = SettledIds()
    for number in range(upload_window.MOST_REMEMBERED + 5):
        settled.add("a", str(number), 0.0)
    assert len(settled) == upload_window.MOST_REMEMBERED
    assert ("a", "4") not in settled
    assert ("a", "5") in settled


def test_earlier_uploads_that_are_found_later_are_loaded_and_no_other_twice() -> None:
    """C31: rows of another dispatcher are taken over while later ones of the node are in memory."""
    window = UploadWindow(WindowBounds())
    for place in (10, 11):
        window.expect("a", place)
        assert window.stored(stored("a", place), is_new=True)
    window.found("a", 3, 5)
    (load,) = window.wanted()
    assert (load.after, load.through) == (2, 11)
    queued = window.loaded(load, [stored("a", place) for place in (3, 5, 10, 11)], 11)
    assert [one.place for one in queued] == [3, 5]
    assert window.wanted() == []
    assert window.in_memory == 4


def test_what_is_found_while_a_load_is_under_way_is_loaded_by_the_next() -> None:
    window = UploadWindow(WindowBounds())
    window.found("a", 10, 12)
    (first,) = window.wanted()
    window.found("a", 2, 4)
    queued = window.loaded(first, [stored("a", place) for place in (10, 12)], 12)
    assert [one.place for one in queued] == [10, 12]
    (second,) = window.wanted()
    assert second.after < 2 < second.through
    queued = window.loaded(second, [stored("a", place) for place in (2, 4, 10, 12)], 12)
    assert [one.place for one in queued] == [2, 4]
    for place in (2, 4, 10, 12):
        window.settled(stored("a", place))
    assert (window.in_memory, len(window)) == (0, 0)


def test_a_late_upload_of_an_earlier_session_is_not_forgotten() -> None:
    """Later rows were taken over meanwhile; this one was still on its way to the store."""
    window = UploadWindow(WindowBounds())
    window.expect("a", 5)
    window.found("a", 8, 9)
    assert window.stored(stored("a", 5), is_new=True) == []
    (load,) = window.wanted()
    queued = window.loaded(load, [stored("a", place) for place in (5, 8, 9)], 9)
    assert [one.place for one in queued] == [5, 8, 9]

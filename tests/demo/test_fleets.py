"""Several fleets of a demo as one."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from demo.checker import Held, check, on_disk
from demo.fleet import Fleet
from demo.fleet_worker import RECOVERY_SECONDS, Acknowledgements, Report
from demo.fleets import Disk, Fleets
from demo.ledger import Ledger
from demo.operator import HubFigures, Operator
from demo.processes import Child
from edge.protocol import Header, Kind, Route, Step
from edge.protocol import Message as EdgeMessage
from edge.store import Batch, Change, EdgeStore

# Says what it was told.
_ECHO = ["-c", "import sys; [sys.stdout.write(line) and sys.stdout.flush() for line in sys.stdin]"]


@pytest.fixture
async def fleets(tmp_path: Path) -> AsyncIterator[Fleets]:
    """edge-1 and edge-2 in one process, edge-3 in another."""
    async with AsyncExitStack() as stack:
        children = []
        for name in ("edges", "joining-edge"):
            child = await Child.start(name, _ECHO, tmp_path / f"{name}.log", piped=True)
            stack.push_async_callback(child.stop, 5.0)
            children.append(child)
        first, second = Fleet(children[0], 2), Fleet(children[1], 1, 3)
        yield Fleets([(first, tmp_path / "a.db"), (second, tmp_path / "b.db")])


async def test_a_node_is_cut_where_it_is_and_everybody_is_healed(fleets: Fleets) -> None:
    assert fleets.node_ids == ["edge-1", "edge-2", "edge-3"]
    fleets.cut("edge-3")
    fleets.block("edge-2", 4.0)
    fleets.heal()
    told = [[json.loads(await fleet.child.stdout.readline()) for _ in range(2)] for fleet in fleets.all]
    assert [[one["do"] for one in lines] for lines in told] == [["block", "heal"], ["cut", "heal"]]
    assert [lines[0]["node"] for lines in told] == ["edge-2", "edge-3"]


async def test_reports_are_added_up_and_latencies_are_taken_once(fleets: Fleets) -> None:
    for fleet, links in zip(fleets.all, (2, 1), strict=True):
        fleet.report = Report(links, 10, 1, links, 5, {})
        fleet.latencies.add(100.0 * links)
        fleet.by_version.update({7: links, 8: 1})
    fleets.all[0].latencies_of_cut.add(200.0)
    assert fleets.report == Report(3, 20, 2, 3, 10, {})
    # Those that a cut held up are told apart from the others.
    assert [sum(counts.values()) for counts in fleets.take_latencies()] == [1, 1]
    assert fleets.take_latencies() == ({}, {})
    assert fleets.acknowledged({7}) == 3


def test_of_what_is_acknowledged_is_told_which_versions_and_what_a_cut_held_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_us = 1_800_000_000_000_000
    monkeypatch.setattr("demo.fleet_worker.time.time_ns", lambda: now_us * 1000)
    counted = Acknowledgements(["edge-1", "edge-2"])

    def acknowledged(node_id: str, version: int) -> None:
        route = Route(operation="update", resource="a/pod/u")
        message = EdgeMessage(header=Header(msg_id="m", resourceversion=str(version)), route=route)
        counted.add([Change(node_id, message, Step(Kind.STORE, "u"), 0)])

    counted.cut("edge-1", 4.0)
    ended_us = now_us + int((4.0 + RECOVERY_SECONDS) * 1e6)
    for version in (now_us - 1, now_us - 1, now_us + 1, ended_us + 1):
        acknowledged("edge-1", version)
    acknowledged("edge-2", now_us + 1)
    assert counted.by_version == {now_us - 1: 1, now_us + 1: 2, ended_us + 1: 1}
    assert (len(counted.latencies), len(counted.latencies_of_cut)) == (4, 2)


def _stored(database: Path, node_id: str, version: int, uid: str = "u") -> None:
    store = EdgeStore(database)
    message = EdgeMessage(
        header=Header(msg_id="m", resourceversion=str(version)),
        route=Route(operation="update", resource="a/pod/u"),
    )
    store.commit(Batch(changes=[Change(node_id, message, Step(Kind.STORE, uid), 0)]))
    store.close()


def test_what_a_node_left_on_a_disk_that_it_has_no_more_is_not_looked_at(tmp_path: Path) -> None:
    """A node of the fleet in one run may be the one that joins in the next."""
    message = Message(resource_version="7", operation="update", resource="a/pod/u")
    ledger = Ledger()
    outcome = pb.NodeOutcome(node_id="edge-3", outcome=pb.OUTCOME_ACCEPTED)
    ledger.enter(
        pb.PublishRequest(message=message, node_ids=["edge-3"]), pb.PublishResponse(outcomes=[outcome]), "u"
    )
    _stored(tmp_path / "old.db", "edge-3", 9)
    _stored(tmp_path / "new.db", "edge-3", 7)
    disks = [
        Disk(tmp_path / "new.db", frozenset({"edge-3"})),
        Disk(tmp_path / "old.db", frozenset({"edge-1", "edge-2"})),
    ]
    assert on_disk(disks, ledger) == Held({("edge-3", "u"): 7}, set(), 1)


class Explaining:
    """A hub that holds nothing, and says the same of every object."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    async def figures(self) -> HubFigures:
        return HubFigures()

    async def explain(self, node_id: str, key: str) -> pb.ExplainDeliveryResponse:
        ended = pb.DeliveryEvent(kind="ended", version="7", reason=self.reason)
        row = pb.ObjectDelivery(state=pb.DELIVERY_STATE_ENDED, version="7")
        return pb.ExplainDeliveryResponse(object=row, events=[ended] if self.reason else [])


@pytest.mark.parametrize(
    ("there", "reason", "figures"),
    [
        ("other", "replaced at its path by other version 8", (1, 0, 0)),
        ("", "expired", (0, 1, 0)),
        ("other", "", (0, 0, 1)),
    ],
)
async def test_what_another_publisher_replaced_is_counted_as_such(
    tmp_path: Path, there: str, reason: str, figures: tuple[int, int, int]
) -> None:
    """C51: only if the hub says so, with a reason; else it is lost."""
    message = Message(resource_version="7", operation="update", resource="a/pod/u")
    ledger = Ledger()
    outcome = pb.NodeOutcome(node_id="edge-1", outcome=pb.OUTCOME_ACCEPTED)
    request = pb.PublishRequest(message=message, node_ids=["edge-1"])
    ledger.enter(request, pb.PublishResponse(outcomes=[outcome]), "u")
    database = tmp_path / "edges.db"
    if there:
        _stored(database, "edge-1", 8, there)
    else:
        EdgeStore(database).close()
    verdict = await check(ledger, cast(Operator, Explaining(reason)), [Disk(database, frozenset({"edge-1"}))])
    assert (verdict.replaced, verdict.ended, verdict.lost) == figures

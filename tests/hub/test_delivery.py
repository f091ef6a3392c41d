"""Delivery through a whole hub: from a publish to an edge's acknowledgement."""

import asyncio
import gc
from pathlib import Path

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from edge.store import StoredObject, read_objects
from services.dispatcher.entry import Entry
from services.dispatcher.node_session import NodeSession
from services.dispatcher.policy import NodeDelivery
from tests.support.certs import TestAuthority
from tests.support.hub import Json, RunningHub, StockEdge, request, running_hub
from tests.support.processes import eventually

PENDING, IN_FLIGHT = pb.DELIVERY_STATE_PENDING, pb.DELIVERY_STATE_IN_FLIGHT
PARKED, ACKNOWLEDGED = pb.DELIVERY_STATE_PARKED, pb.DELIVERY_STATE_ACKNOWLEDGED
ENDED = pb.DELIVERY_STATE_ENDED
QUICK = {"ack_seconds": 0.15, "ack_most_seconds": 0.3, "most_attempts": 3}


def what(message: Json) -> tuple[str, str]:
    """(operation, version) of a message on the wire."""
    return message["route"]["operation"], message["header"].get("resourceversion", "")


def names(messages: list[Json]) -> list[str]:
    """The last part of their resource paths."""
    return [message["route"]["resource"].rsplit("/", 1)[1] for message in messages]


async def in_flight(hub: RunningHub, node_id: str = "edge-1") -> int:
    """How many messages are in flight to the node."""
    response = await hub.dispatcher_admin.InspectNode(pb.InspectNodeRequest(node_id=node_id), timeout=5)
    return int(response.node.in_flight)


async def test_publishing_to_absent_nodes_leaves_nothing_in_memory(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C3: 5 000 messages to 50 nodes without a session: rows, but no tasks, queues or timers."""

    def kept() -> set[int]:
        gc.collect()
        kinds = (Entry, NodeDelivery, NodeSession)
        return {id(thing) for thing in gc.get_objects() if isinstance(thing, kinds)}

    before = kept()  # of tests that ran in this process
    async with running_hub(tmp_path, authority) as hub:
        nodes = [f"absent-{number}" for number in range(50)]
        await hub.accept(request(*nodes, name="first"))
        tasks = len(asyncio.all_tasks())
        for number in range(99):
            await hub.accept(request(*nodes, name=f"cm{number}"))
        assert kept() <= before
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks)  # gRPC's own task of the last call
        assert not hub.dispatcher.app.delivery.sessions
        listed = await hub.dispatcher_admin.ListNodes(pb.ListNodesRequest(page_size=1000), timeout=5)
        assert [node.pending for node in listed.nodes] == [100] * 50


async def test_the_answer_comes_after_the_commit(tmp_path: Path, authority: TestAuthority) -> None:
    """C12: while the store takes no write there is no answer, and no message on the wire."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        with hub.locked_database("dispatcher"):
            publishing = asyncio.create_task(hub.publish(request()))
            await edge.gets_nothing(0.5)
            assert not publishing.done()
        (outcome,) = await publishing
        assert outcome.outcome == pb.OUTCOME_ACCEPTED
        assert what(await edge.next()) == ("update", "1")


async def test_a_store_that_fails_is_told_and_acknowledgements_are_written_later(
    tmp_path: Path, authority: TestAuthority, impatient_sqlite: None
) -> None:
    """C25, invariant 9: UNAVAILABLE to publishers; what is in flight goes on; nothing is sent again."""
    async with running_hub(tmp_path, authority, dispatcher={"ack_seconds": 30}) as hub, hub.edge() as edge:
        await hub.accept(request(message_id="m1"))
        message = await edge.next()
        with hub.locked_database("dispatcher"):
            await edge.answer(message)
            (outcome,) = await hub.publish(request(name="other", message_id="m2"))
            assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_UNAVAILABLE, "STORE_UNAVAILABLE")
            assert "locked" in outcome.detail
            assert (await hub.explain("edge-1", key="uid-cm1")).object.acknowledged_version == ""
        explained = await hub.until_state("edge-1", "uid-cm1", ACKNOWLEDGED)
        assert explained.object.acknowledged_version == "1"
        # The same id again, as a publisher may whose outcome is unknown.
        await hub.accept(request(name="other", message_id="m2"))
        assert (await edge.next())["header"]["msg_id"] == "m2"
        await edge.gets_nothing(0.1)
        assert hub.metric("dispatcher", "store_failures_total") >= 1


async def test_a_deletion_waits_for_a_node_long_offline_and_comes_once(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C14: exactly one final delete; the versions before it never come."""
    async with running_hub(tmp_path, authority) as hub:
        for version in (1, 2, 3):
            await hub.accept(request(version=version))
        await hub.accept(request(version=4, operation="delete", message_id="gone"))
        await hub.accept(request(version=4, operation="delete", message_id="gone"))
        for _ in range(2):
            # Not acknowledged: it comes again with the next link, and nothing else does.
            async with hub.edge() as edge:
                message = await edge.next()
                assert (what(message), message["header"]["msg_id"]) == (("delete", "4"), "gone")
                await edge.gets_nothing(0.1)
        async with hub.edge() as edge:
            await edge.answer(await edge.next())
            await hub.until_state("edge-1", "uid-cm1", ACKNOWLEDGED)
            (late,) = await hub.publish(request(version=5))
            assert (late.outcome, late.reason) == (pb.OUTCOME_STALE, "DELETED")
        async with hub.edge() as edge:
            await edge.gets_nothing(0.1)


async def test_an_object_created_anew_comes_after_the_deletion_of_its_namesake(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C15: five times in a row, on the wire: in order, and one in flight at a time."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        await hub.accept(request(uid="uid-0", version=1, operation="insert"))
        await edge.answer(await edge.next())
        for number in range(5):
            gone, new = f"uid-{number}", f"uid-{number + 1}"
            await hub.accept(request(uid=gone, version=10 * number + 5, operation="delete"))
            await hub.accept(request(uid=new, version=10 * number + 11, operation="insert"))
            for operation, uid in (("delete", gone), ("insert", new)):
                message = await edge.next()
                assert (what(message)[0], message["content"]["metadata"]["uid"]) == (operation, uid)
                await edge.gets_nothing(0.05)
                assert await in_flight(hub) == 1
                await edge.answer(message)
        await hub.until_state("edge-1", "uid-5", ACKNOWLEDGED)
        await edge.gets_nothing(0.05)


async def test_the_edge_ends_with_the_new_object_also_after_late_repetitions(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C15: an edge that is cut while the deletion is on its way keeps the object created after it."""
    async with running_hub(tmp_path, authority, dispatcher=QUICK) as hub, hub.fleet("edge-1") as fleet:
        for number in range(5):
            await hub.accept(request(uid=f"uid-{number}", version=10 * number + 1, operation="insert"))
            fleet["edge-1"].cut()
            await hub.accept(request(uid=f"uid-{number}", version=10 * number + 2, operation="delete"))
        await hub.accept(request(uid="last", version=99, operation="insert"))
        await hub.until_state("edge-1", "last", ACKNOWLEDGED)
        held = [(row.uid, row.version) for row in stored(tmp_path)]
        assert held == [("last", "99")]


def stored(folder: Path) -> list[StoredObject]:
    """What the fleet has on disk."""
    return read_objects(folder / "edges.db")


async def test_an_operation_that_the_edge_does_not_know_is_parked_in_the_end(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C20: sent again, then parked with its reason; other keys go on; what un-parks it."""
    settings = {**QUICK, "edge_acknowledgements": "all"}
    async with running_hub(tmp_path, authority, dispatcher=settings) as hub, hub.fleet("edge-1") as fleet:
        edge = fleet["edge-1"]
        await hub.accept(request(name="odd", operation="frobnicate"))
        await eventually(lambda: edge.counters.swallowed["unknown_operation"] == 1)
        await hub.accept(request(name="plain"))
        await hub.until_state("edge-1", "uid-plain", ACKNOWLEDGED)
        parked = await hub.until_state("edge-1", "uid-odd", PARKED)
        assert edge.counters.swallowed["unknown_operation"] == 3
        assert parked.object.unacknowledged_attempts == 3
        assert "not acknowledged in 3 attempts" in parked.object.parked_reason
        assert parked.object.parked_reason in parked.explanation
        assert [event.attempt for event in parked.events if event.kind == "sent"] == [1, 2, 3]
        assert hub.metric("dispatcher", "parked_total", reason="unacknowledged") == 1
        told = await hub.dispatcher_admin.Redeliver(pb.RedeliverRequest(node_id="edge-1"), timeout=5)
        assert told.redelivered == 1
        await eventually(lambda: edge.counters.swallowed["unknown_operation"] > 3)
        await hub.until_state("edge-1", "uid-odd", PARKED)
        await hub.accept(request(name="odd", version=2))
        await hub.until_state("edge-1", "uid-odd", ACKNOWLEDGED)
        assert [(row.uid, row.version) for row in stored(tmp_path)] == [("uid-odd", "2"), ("uid-plain", "1")]


async def test_cut_links_do_not_count_as_missing_acknowledgements(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C20, C27: a message is sent over each new link, however often, and never parked for that."""
    settings = {"ack_seconds": 20, "most_attempts": 2}
    async with running_hub(tmp_path, authority, dispatcher=settings) as hub:
        await hub.accept(request(message_id="m1"))
        for _ in range(5):
            edge = await hub.open_edge()
            assert (await edge.next())["header"]["msg_id"] == "m1"
            edge.cut()
        explained = await hub.explain("edge-1", key="uid-cm1")
        assert explained.object.unacknowledged_attempts == 0
        assert explained.state in (PENDING, IN_FLIGHT)


async def test_a_negative_acknowledgement_parks_at_once_with_its_text(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C21."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        await hub.accept(request())
        await edge.answer(await edge.next(), "error", "the disk is full")
        parked = await hub.until_state("edge-1", "uid-cm1", PARKED)
        assert "the disk is full" in parked.object.parked_reason
        assert "the disk is full" in parked.explanation
        assert hub.metric("dispatcher", "refused_total") == 1
        # An equal publish un-parks it.
        (outcome,) = await hub.publish(request())
        assert (outcome.outcome, bool(outcome.duplicate_of)) == (pb.OUTCOME_ACCEPTED, True)
        await edge.answer(await edge.next())
        await hub.until_state("edge-1", "uid-cm1", ACKNOWLEDGED)


async def test_the_window_is_never_exceeded(tmp_path: Path, authority: TestAuthority) -> None:
    """C22: W messages in flight, one more for each acknowledgement, in the order of acceptance."""
    async with running_hub(tmp_path, authority, dispatcher={"window_messages": 4}) as hub, hub.edge() as edge:
        await hub.accept(*(request(name=f"cm{number:02}") for number in range(12)))
        held = await edge.take(4)
        await edge.gets_nothing(0.1)
        got = list(held)
        while held:
            assert await in_flight(hub) <= 4
            await edge.answer(held.pop(0))
            if len(got) < 12:
                held.append(await edge.next())
                got.append(held[-1])
                await edge.gets_nothing(0.01)
        assert names(got) == [f"cm{number:02}" for number in range(12)]


async def test_the_window_counts_bytes_and_always_lets_one_message_pass(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C22: B bytes in flight, a message above B goes alone."""
    async with running_hub(tmp_path, authority, dispatcher={"window_bytes": 4096}) as hub, hub.edge() as edge:
        await hub.accept(
            request(name="small1", size_bytes=1000),
            request(name="large", size_bytes=50_000),
            request(name="small2", size_bytes=1000),
        )
        for name in ("small1", "large", "small2"):
            message = await edge.next()
            assert names([message]) == [name]
            await edge.gets_nothing(0.05)
            await edge.answer(message)


async def test_odd_acknowledgements_are_harmless_and_counted(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C24: twice, of an unknown id, from another node."""
    async with (
        running_hub(tmp_path, authority) as hub,
        hub.edge("edge-1") as edge,
        hub.edge("edge-2") as other,
    ):
        await hub.accept(request("edge-1"), request("edge-1", name="cm2"))
        first, second = await edge.take(2)
        await other.answer(first)
        await edge.send("response", "x", "OK", parent_id="never-sent")
        await eventually(lambda: hub.metric("dispatcher", "ignored_total", reason="unknown_message") == 2)
        assert (await hub.explain("edge-1", key="uid-cm1")).state == IN_FLIGHT
        await edge.answer(first)
        await edge.answer(first)
        await edge.answer(first, "error", "too late to refuse")
        await edge.answer(second)
        await hub.until_state("edge-1", "uid-cm2", ACKNOWLEDGED)
        assert hub.metric("dispatcher", "ignored_total", reason="unknown_message") == 4
        assert (await hub.explain("edge-1", key="uid-cm1")).state == ACKNOWLEDGED
        assert len(await hub.links()) == 2


async def test_an_acknowledgement_of_the_older_version_leaves_the_newer_pending(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C23: it is recorded; and over the next link only the newer comes."""
    async with running_hub(tmp_path, authority) as hub:
        async with hub.edge() as edge:
            await hub.accept(request(version=5))
            older = await edge.next()
            await hub.accept(request(version=6))
            assert what(await edge.next()) == ("update", "6")
            await edge.answer(older)
            await eventually(lambda: hub.metric("dispatcher", "acknowledged_total") == 1)
            explained = await hub.explain("edge-1", key="uid-cm1")
            assert (explained.object.acknowledged_version, explained.object.version) == ("5", "6")
            assert explained.state == IN_FLIGHT
        async with hub.edge() as edge:
            assert what(await edge.next()) == ("update", "6")
            await edge.gets_nothing(0.1)


@pytest.mark.parametrize("version", ["9", "99999999999999999999"])
async def test_versions_compare_as_integers(tmp_path: Path, authority: TestAuthority, version: str) -> None:
    """C17: `9` < `10`, up to 20 digits, all the way to the store and back."""
    async with running_hub(tmp_path, authority) as hub:
        await hub.accept(request(version=9))
        (outcome,) = await hub.publish(request(version=8))
        assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_STALE, "BELOW_FLOOR")
        newer = str(max(10, int(version)))
        await hub.accept(request(version=newer))
        (outcome,) = await hub.publish(request(version=9))
        assert outcome.outcome == pb.OUTCOME_STALE
        async with hub.edge() as edge:
            assert what(await edge.next()) == ("update", newer)


async def test_a_message_without_acknowledgement_is_sent_once_or_dropped(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C26: never stored; never behind an ACK message; dropped with a counted reason without a link."""
    no_ack = pb.ACK_MODE_NO_ACK
    async with running_hub(tmp_path, authority, dispatcher={"window_messages": 1}) as hub:
        (outcome,) = await hub.publish(request(name="lost", ack_mode=no_ack))
        assert (outcome.outcome, outcome.reason) == (pb.OUTCOME_NO_SESSION, "NOT_CONNECTED")
        assert hub.metric("dispatcher", "dropped_total", reason="no_session") == 1
        async with hub.edge() as edge:
            await hub.accept(request(name="first"), request(name="second"))
            assert names([await edge.next()]) == ["first"]
            # The window is full and `second` waits; this one does not.
            await hub.accept(request(name="quick", ack_mode=no_ack))
            assert names([await edge.next()]) == ["quick"]
            await edge.gets_nothing(0.1)
            inspected = await hub.dispatcher_admin.InspectNode(
                pb.InspectNodeRequest(node_id="edge-1"), timeout=5
            )
            assert [one.object_key for one in inspected.objects] == ["uid-first", "uid-second"]
        async with hub.edge() as edge:
            assert names([await edge.next()]) == ["first"]
            await edge.gets_nothing(0.1)


async def test_a_link_reset_during_delivery_loses_nothing(tmp_path: Path, authority: TestAuthority) -> None:
    """C27: what was not acknowledged comes over the next link, in order, and nothing else."""
    async with running_hub(tmp_path, authority, dispatcher={"window_messages": 4}) as hub:
        await hub.accept(*(request(name=f"cm{number}") for number in range(8)))
        edge = await hub.open_edge()
        held = await edge.take(3)
        await edge.answer(held[1])
        await hub.until_state("edge-1", "uid-cm1", ACKNOWLEDGED)
        edge.cut()
        async with hub.edge() as edge:
            got = []
            for _ in range(7):
                got.append(await edge.next())
                await edge.answer(got[-1])
            assert names(got) == [f"cm{number}" for number in (0, 2, 3, 4, 5, 6, 7)]
            await edge.gets_nothing(0.1)


async def acknowledge_all(edge: StockEdge, number: int) -> None:
    """Takes and acknowledges messages."""
    for _ in range(number):
        await edge.answer(await edge.next())


async def test_explain_tells_the_truth_in_each_state(tmp_path: Path, authority: TestAuthority) -> None:
    """ExplainDelivery: offline, in flight, waiting, parked, acknowledged, superseded, expired, purged."""
    async with running_hub(tmp_path, authority, dispatcher={"window_messages": 1}) as hub:
        await hub.accept(
            request(name="a", message_id="a1"),
            request(name="b", message_id="b1"),
            request(name="c", message_id="c1", time_to_live_seconds=0.3),
            request(name="d", message_id="d1"),
        )
        offline = await hub.explain("edge-1", message_id="a1")
        assert offline.state == PENDING
        assert "not connected" in offline.explanation
        async with hub.edge() as edge:
            message = await edge.next()
            flying = await hub.explain("edge-1", message_id="a1")
            assert flying.state == IN_FLIGHT
            assert "sent over the present link" in flying.explanation
            waiting = await hub.explain("edge-1", message_id="b1")
            assert waiting.state == PENDING
            assert "waits for its turn" in waiting.explanation
            expired = await hub.until_state("edge-1", "uid-c", ENDED)
            assert "expired" in expired.explanation
            await edge.answer(message)
            await hub.until_state("edge-1", "uid-a", ACKNOWLEDGED)
            acknowledged = await hub.explain("edge-1", message_id="a1")
            assert "acknowledged" in acknowledged.explanation
            assert [event.kind for event in acknowledged.events] == ["accepted", "sent", "acknowledged"]
            await edge.answer(await edge.next(), "error", "no room")
            parked = await hub.until_state("edge-1", "uid-b", PARKED)
            assert "no room" in parked.explanation
            await acknowledge_all(edge, 1)
        await hub.until_state("edge-1", "uid-d", ACKNOWLEDGED)
        await hub.accept(request(name="b", version=2, message_id="b2"))
        superseded = await hub.explain("edge-1", message_id="b1")
        assert superseded.state == ENDED
        assert "superseded" in superseded.explanation
        assert (await hub.explain("edge-1", message_id="b2")).state == PENDING
        await hub.dispatcher_admin.Purge(pb.PurgeRequest(node_id="edge-1", object_key="uid-b"), timeout=5)
        purged = await hub.explain("edge-1", message_id="b2")
        assert purged.state == ENDED
        assert "purged" in purged.explanation

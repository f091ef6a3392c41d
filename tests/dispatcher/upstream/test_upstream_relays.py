"""What another dispatcher may hand on: `services.dispatcher.upstream.relays`."""

from typing import Any, cast

import pytest

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream import node_queues
from services.dispatcher.upstream.node_queues import NodeQueues
from services.dispatcher.upstream.parcel import Parcel
from services.dispatcher.upstream.relays import MOST_CREDIT, Relays
from services.dispatcher.upstream.room import Bounds


@pytest.mark.parametrize(("asked", "wanted"), [([10], 10), ([10, 900], 910), ([1000, 65_536], MOST_CREDIT)])
def test_what_is_out_at_another_dispatcher_is_bounded(asked: list[int], wanted: int) -> None:
    """However much its subscribers ask for; each other dispatcher has as much of its own."""
    queues = NodeQueues(Bounds(100, 1000, 100, 1000))
    relays = Relays(queues, lambda parcels: None, cast("Any", None))
    for credit in asked:
        queues.subscribe(["edgecontroller"], credit)
    for end in (relays.open(), relays.open()):
        assert end.say(relays.wanted).subscription.max_unacknowledged == wanted


def test_what_another_dispatcher_holds_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """C39, C46: large ones do not fill its memory; a subscriber here gets the rest meanwhile."""
    monkeypatch.setattr(node_queues, "MAX_RELAYED_BYTES", 1000)
    queues = NodeQueues(Bounds(100, 10_000, 1000, 100_000))
    relay = queues.subscribe(["edgecontroller"], 100, is_relay=True)
    for node in "abcdefgh":
        for number in range(10):
            queues.put(Parcel("edgecontroller", node, 1, Message(id=str(number)), 100))
    held = queues.take(relay, 100, 100_000, 0.0)
    assert len(held) == 10
    assert queues.take(relay, 100, 100_000, 0.0) == []
    here = queues.subscribe(["edgecontroller"], 5)
    queues.put(Parcel("edgecontroller", "z", 1, Message(id="z"), 100))
    assert [one.node_id for _, one in queues.take(here, 100, 100_000, 0.0)] == ["z"]
    queues.settle(relay, [delivery_id for delivery_id, _ in held], 0.0)
    assert len(queues.take(relay, 100, 100_000, 0.0)) == 10


def test_one_that_is_larger_goes_alone_and_what_is_given_back_counts_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C39: as with every bound in bytes of the hub."""
    monkeypatch.setattr(node_queues, "MAX_RELAYED_BYTES", 1000)
    queues = NodeQueues(Bounds(100, 100_000, 1000, 100_000))
    relay = queues.subscribe(["edgecontroller"], 100, is_relay=True)
    for node in "ab":
        queues.put(Parcel("edgecontroller", node, 1, Message(id=node), 5000))
    for expected in "ab":
        ((delivery_id, parcel),) = queues.take(relay, 100, 100_000, 0.0)
        assert parcel.node_id == expected
        assert queues.take(relay, 100, 100_000, 0.0) == []
        if expected == "a":
            queues.settle(relay, [delivery_id], 0.0)
        else:
            queues.give_back(relay, [delivery_id])
    assert [one.node_id for _, one in queues.take(relay, 100, 100_000, 0.0)] == ["b"]

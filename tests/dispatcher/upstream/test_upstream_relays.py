"""What another dispatcher may hand on: `services.dispatcher.upstream.relays`."""

from typing import Any, cast

import pytest

from services.dispatcher.upstream.node_queues import NodeQueues
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

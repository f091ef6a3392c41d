"""Lifecycle events as messages and their copies."""

import json

from services.dispatcher.upstream import lifecycle_events
from services.dispatcher.upstream.lifecycle_events import EventCopies, event_message
from tests.support.upstream import event


def test_an_event_becomes_the_message_of_the_protocol_page() -> None:
    message = event_message(event("edge-1", 12, "connected", "e-1"))
    assert (message.id, message.source, message.group) == ("e-1", "cloudhub", "resource")
    assert (message.operation, message.resource) == ("connected", "node/edge-1")
    assert json.loads(message.content) == {
        "event_type": "connected",
        "timestamp": 12,
        "client_id": "edge-1",
    }


def test_an_event_is_done_when_its_last_copy_is_settled() -> None:
    copies = EventCopies()
    assert copies.opened("e", 2)
    assert not copies.settled("e")
    assert not copies.is_done("e")
    assert copies.settled("e")
    assert copies.is_done("e")
    assert len(copies) == 0


def test_an_event_that_is_out_is_not_opened_again() -> None:
    copies = EventCopies()
    assert copies.opened("e", 1)
    assert not copies.opened("e", 3)
    assert copies.settled("e")


def test_only_the_latest_settled_events_are_remembered() -> None:
    copies = EventCopies()
    for number in range(lifecycle_events.MOST_REMEMBERED + 1):
        copies.opened(str(number), 1)
        copies.settled(str(number))
    assert not copies.is_done("0")
    assert copies.is_done("1")

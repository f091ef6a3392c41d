"""What goes over a stream of publishes to another dispatcher: `services.dispatcher.peers.forwards`."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cloudhub.v1.dispatcher_pb2 import NodeOutcome
from services.dispatcher.outbox.records import Accept
from services.dispatcher.peers.forwards import (
    MAX_MESSAGES_PER_REQUEST,
    MOST_BYTES_PER_REQUEST,
    Forwards,
)
from tests.support.outbox import NOW_MS, publication


def filled(sizes: list[int]) -> tuple[Forwards[int], list[int]]:
    returned: list[int] = []
    forwards: Forwards[int] = Forwards("d2", returned.extend)
    base = publication(1)
    forwards.add(
        [
            (
                place,
                Accept("n" * 253, base._replace(body=bytes(size), size_bytes=size, uid="u" * 1024), NOW_MS),
            )
            for place, size in enumerate(sizes)
        ]
    )
    return forwards, returned


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([10, 100_000, 2 * 1024 * 1024, 5 * 1024 * 1024]), max_size=6))
def test_requests_are_bounded_and_keep_the_order(sizes: list[int]) -> None:
    """C41: a message goes alone if it must; none that would make a request too large goes with others."""
    forwards, returned = filled(sizes)
    sent: list[int] = []
    while (request := forwards.next_request()) is not None:
        assert len(request.messages) == 1 or request.ByteSize() <= MOST_BYTES_PER_REQUEST
        sent += [len(message.message) for message in request.messages]
    assert sent == sizes
    answered = forwards.answered([NodeOutcome()] * len(sizes))
    assert [item for item, _ in answered] == list(range(len(sizes)))
    forwards.close()
    assert returned == []


def test_a_request_is_bounded_in_messages_and_what_is_unanswered_comes_back() -> None:
    forwards, returned = filled([1] * (MAX_MESSAGES_PER_REQUEST + 1))
    lengths = []
    while (request := forwards.next_request()) is not None:
        lengths.append(len(request.messages))
    assert lengths == [MAX_MESSAGES_PER_REQUEST, 1]
    forwards.close()
    assert len(returned) == MAX_MESSAGES_PER_REQUEST + 1

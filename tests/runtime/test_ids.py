"""Identifiers the hub makes itself: `services.runtime.ids`."""

import time
import uuid

from services.runtime.ids import new_id


def test_an_id_is_a_uuid_of_its_time_as_text() -> None:
    """RFC 9562, version 7: 48 bits are milliseconds, 74 are random, no two are alike."""
    before = time.time_ns() // 1_000_000
    made = [new_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 1000
    for text in made:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
        assert before <= parsed.int >> 80 <= after
    free = [number for number in range(76) if not 62 <= number < 64]
    for bit in free:
        assert {uuid.UUID(text).int >> bit & 1 for text in made} == {0, 1}


def test_a_later_id_is_the_greater_one() -> None:
    """As text as well: that is what an index compares."""
    first = new_id()
    at_ms = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == at_ms:
        pass
    assert first < new_id()

"""Identifiers the hub makes itself: `services.runtime.ids`."""

import uuid

from services.runtime.ids import new_id


def test_an_id_is_a_random_uuid_as_text() -> None:
    """RFC 9562, version 4: 122 bits are random, no two are alike."""
    made = [new_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    for text in made:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)
    free = [number for number in range(128) if not (76 <= number < 80 or 62 <= number < 64)]
    for bit in free:
        assert {uuid.UUID(text).int >> bit & 1 for text in made} == {0, 1}

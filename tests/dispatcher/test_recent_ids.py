"""`services.dispatcher.recent_ids`."""

from services.dispatcher.recent_ids import MAX_RECENT_IDS, RecentIds


def test_the_oldest_is_forgotten_at_the_bound() -> None:
    """C24."""
    ids, others = RecentIds(), RecentIds()
    others.add("theirs")
    assert "m0" not in ids
    for number in range(MAX_RECENT_IDS + 1):
        ids.add(f"m{number}")
    assert "m0" not in ids
    assert all(f"m{number}" in ids for number in range(1, MAX_RECENT_IDS + 1))
    assert "theirs" in others

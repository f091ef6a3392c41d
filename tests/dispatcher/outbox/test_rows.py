"""Between rows and records: `services.dispatcher.outbox.rows`."""

from services.dispatcher.outbox.rows import version_number, version_text


def test_texts_of_versions_that_are_kept_are_bounded_and_right() -> None:
    """What was used longest ago is made anew."""
    most = version_text.cache_parameters()["maxsize"]
    for version in (*range(most + 100), 0, 10**20 - 1):
        assert version_number(version_text(version)) == version
    assert version_text.cache_info().currsize == most

"""Names that services tell each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.names import (
    check_instance_id,
    check_label,
    check_transport,
    check_version,
    instance_id,
)


@given(st.text(max_size=300))
def test_any_name_of_an_operator_makes_a_valid_instance_id(name: str) -> None:
    """A dispatcher whose name has a space, or is long, would get no lease."""
    unique = "0b1c7f8e-8a53-4d1f-9a57-1f2e3d4c5b6a"
    made = instance_id(name, unique)
    assert check_instance_id(made) is None
    assert made.endswith(unique)


@pytest.mark.parametrize("text", ["", "pod-7", "x" * 253, "Büro 2", "[::1]:4711"])
def test_what_people_read_is_a_label(text: str) -> None:
    assert check_label(text) is None


@pytest.mark.parametrize("text", ["x" * 254, "a\0", "line\nbreak", "\x1b[31m"])
def test_what_is_too_long_or_moves_the_cursor_is_no_label(text: str) -> None:
    assert "should" in (check_label(text) or "")


def test_transports_are_known_by_name() -> None:
    assert check_transport("websocket") is check_transport("quic") is None
    assert "'tcp'" in (check_transport("tcp") or "")


def test_a_version_is_a_short_label() -> None:
    assert check_version("") is None
    assert check_version("1.2.3+local.4") is None
    assert "at most 64 characters" in (check_version("1" * 65) or "")
    assert "control characters" in (check_version("1\x1b[2J") or "")

"""The list of revoked certificates as text."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.revoked_list import MAX_BYTES, MalformedList, RevokedList, read_revoked


def test_serials_and_names_are_read() -> None:
    found = read_revoked(
        b"# lost laptops\n\n serial: 0A:1b \nserial:0xff\r\nname: CN=shop,O=cloudhub:publisher\nname:CN=a: b"
    )
    assert found == RevokedList(
        frozenset({0xA1B, 0xFF}), frozenset({"CN=shop,O=cloudhub:publisher", "CN=a: b"})
    )
    assert found.has(0xA1B, "CN=other")
    assert found.has(1, "CN=shop,O=cloudhub:publisher")
    assert not found.has(0xA1, "CN=shop")
    assert len(read_revoked(b"")) == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"4f1c", "line 3 should be `serial: HEX`"),
        (b"name:", "line 3 should be"),
        (b"Serial: 12", "line 3 should be"),
        (b"serial: 12x4", "line 3: a serial number"),
        (b"serial:", "line 3: a serial number"),
        (b"serial: " + b"1" * 41, "line 3: a serial number"),
        (b"\xff\xfe", "line 3 is not UTF-8"),
    ],
)
def test_a_malformed_line_is_named(line: bytes, words: str) -> None:
    with pytest.raises(MalformedList, match=words):
        read_revoked(b"serial: 1\n# fine\n" + line + b"\nserial: 2\n")


def test_a_list_has_a_bound() -> None:
    with pytest.raises(MalformedList, match=str(MAX_BYTES)):
        read_revoked(b"#" * (MAX_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_malformed(data: bytes) -> None:
    with suppress(MalformedList):
        assert len(read_revoked(data)) <= data.count(b":")

"""What an edge may send: `edge.content`."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.content import MAX_DEPTH, ContentRefused, check_content, check_resource, check_size
from services.runtime.json_text import check_json


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "there is no content"),
        (b" \n", "there is no content"),
        (b"NaN", "NaN is no JSON value"),
        (b'{"load": -Infinity}', "-Infinity is no JSON value"),
        (b"1e400", "the number 1e400 is beyond a float64"),
        (b"[" + b"9" * 400 + b"]", "999... is beyond a float64"),
        (b'"\\ud83d"', "half a surrogate pair"),
        (b'{"\\ude00": 1}', "half a surrogate pair"),
        (b'"\xff"', "byte 1 is not valid UTF-8"),
        (b'"\xed\xa0\xbd"', "not valid UTF-8"),
        (b"{oops", "not one JSON value"),
        (b"1 2", "not one JSON value"),
        (b'1},"more":{"x":1', "not one JSON value"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested deeper"),
        (b"[" * 100_000, "nested deeper"),
    ],
)
def test_what_the_hub_ends_a_link_over_is_refused_with_its_reason(content: bytes, words: str) -> None:
    """C43."""
    with pytest.raises(ContentRefused, match=re.escape(words)) as caught:
        check_content(content)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "content",
    [b"null", b'"\\ud83d\\ude00"', b"1e308", b"1e-400", b"9" * 308, b'"NaN 1e400 \\\\ud83d"', b" [1] "],
)
def test_what_the_hub_takes_is_taken(content: bytes) -> None:
    """C43."""
    check_content(content)
    check_content(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    check_content(json.dumps([{"[": []}] * 1000).encode())


@given(st.text('0123456789.eE+- ,[]{}:"\\udtrueNaN', max_size=30))
def test_the_hub_takes_whatever_the_agent_takes(text: str) -> None:
    """C43: the two decide by code of their own."""
    content = text.encode()
    try:
        check_content(content)
    except ContentRefused:
        return
    check_json(b'{"number":1,"data":%s}' % content)


@pytest.mark.parametrize("resource", ["", "a\nb", "\ud83d", "a\x00"])
def test_a_resource_that_no_message_can_name_is_refused(resource: str) -> None:
    """C43: half an emoji is no text in a database either."""
    with pytest.raises(ContentRefused, match="printable"):
        check_resource(resource)


def test_a_message_above_the_hubs_limit_is_refused() -> None:
    """C43."""
    check_size(b"x" * 1024, 1024)
    with pytest.raises(ContentRefused, match="1025 bytes; the hub takes at most 1024"):
        check_size(b"x" * 1025, 1024)

"""Which JSON the hub carries: `services.runtime.json_text`."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.json_text import MOST_DEPTH, JsonFault, NotJson, check_json


def fault_of(text: bytes) -> tuple[JsonFault, str]:
    with pytest.raises(NotJson) as caught:
        check_json(text)
    return caught.value.fault, str(caught.value)


# Beyond this the check looks before it decodes.
PADDING = b" " * 20_000
LARGEST = b"1.7976931348623158e308"


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
@pytest.mark.parametrize(
    "number",
    [
        b"1e400",
        b"-1e400",
        b"1E+400",
        b"1e0309",
        b"1.8e308",
        b"1.7976931348623159e308",
        b"0.000001e315",
        b"1e99999999999999999999",
        b"9" * 309,
        b"-" + b"9" * 400,
        b"9" * 5000,
        b"9" * 250 + b"e99",
        b"9" * 250 + b".5e+99",
    ],
)
def test_a_number_beyond_a_float64_is_refused_with_its_place(number: bytes, padding: bytes) -> None:
    """C43."""
    text = b'{"limits": [1, ' + padding + number + b', "x"]}'
    fault, detail = fault_of(text)
    assert fault is JsonFault.NUMBER
    assert f"the number {number[:32].decode()}" in detail
    assert f"at byte {text.index(number)} is beyond a float64; send it as a string" in detail
    assert len(detail) < 150


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
@pytest.mark.parametrize(
    "number",
    [
        LARGEST,
        b"1e-400",
        b"-0",
        b"0e400",
        b"0.000001e313",
        b"9" * 308,
        b"9007199254740993",
        b"0." + b"0" * 400 + b"1",
    ],
)
def test_a_number_that_a_float64_comes_near_is_carried(number: bytes, padding: bytes) -> None:
    """C43."""
    check_json(b"[" + padding + number + b"]")


def test_what_would_be_such_a_number_is_harmless_in_a_string() -> None:
    """C43: hashes and base64 are full of them."""
    for text in ("1e400", "sha256:1e999", "9" * 400, 'a "1e400" \\', "NaN", "[" * 1000, "\\ud83d"):
        check_json(json.dumps({text: [text]}).encode())
        check_json(json.dumps([text, " " * 20_000]).encode())


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (b'"\\ud83d"', "\\ud83d"),
        (b'"\\ude00"', "\\ude00"),
        (b'"\\uD83Da"', "\\uD83D"),
        (b'"\\ud83d\\n"', "\\ud83d"),
        (b'"\\ude00\\ud83d"', "\\ude00"),
        (b'{"\\ud83d": 1}', "\\ud83d"),
        (b'["\\ud83d\\ude00", "\\\\ud83d", "\\ud83d"]', "\\ud83d"),
    ],
)
def test_half_a_surrogate_pair_is_refused_in_words_that_say_so(text: bytes, half: str) -> None:
    """C43."""
    fault, detail = fault_of(text)
    assert fault is JsonFault.SURROGATE
    assert detail.startswith(f"{half} at byte {text.rindex(half.encode())} is half a surrogate pair")


def test_whole_surrogate_pairs_and_escaped_backslashes_are_carried() -> None:
    """C43."""
    for text in (b'"\\ud83d\\ude00"', '"\U0001f600"'.encode(), b'"\\\\ud83d"', b'"\\u0000\\u00e9"'):
        check_json(text)


@pytest.mark.parametrize("text", [b"NaN", b"-Infinity", b"[1, Infinity]", b'{"a": nan}', b"-inf"])
def test_words_for_what_is_no_number_are_refused_by_name(text: bytes) -> None:
    """C43."""
    fault, detail = fault_of(text)
    assert fault is JsonFault.SYNTAX
    assert "is no JSON value; send null or a string" in detail


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", JsonFault.SYNTAX),
        (b" ", JsonFault.SYNTAX),
        (b"1 2", JsonFault.SYNTAX),
        (b"\xef\xbb\xbf1", JsonFault.SYNTAX),
        (b"[1,]", JsonFault.SYNTAX),
        (b'"\x01"', JsonFault.SYNTAX),
        (b"01", JsonFault.SYNTAX),
        (b"1.", JsonFault.SYNTAX),
        (b"'a'", JsonFault.SYNTAX),
        (b"[oops]", JsonFault.SYNTAX),
        (b'"\xff"', JsonFault.ENCODING),
        (b'"\xed\xa0\xbd"', JsonFault.ENCODING),
        (b'{"\xc0\xaf":1}', JsonFault.ENCODING),
        (b'"\xff"' + PADDING, JsonFault.ENCODING),
    ],
)
def test_what_is_not_one_json_value_is_refused(text: bytes, fault: JsonFault) -> None:
    """C43."""
    assert fault_of(text)[0] is fault


def nested(depth: int, padding: bytes = b"") -> bytes:
    pairs, odd = depth // 2, depth % 2
    return b'[{"[":' * pairs + b"[" * odd + padding + b"1" + b"]" * odd + b"}]" * pairs


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
def test_depth_is_bounded_at_the_same_place_however_deep_the_stack(padding: bytes) -> None:
    """C43: what is taken in is read further on too."""

    def deeper(calls: int, text: bytes) -> None:
        if calls:
            deeper(calls - 1, text)
        else:
            check_json(text)

    for depth in (MOST_DEPTH - 1, MOST_DEPTH):
        deeper(250, nested(depth, padding))
    for depth in (MOST_DEPTH + 1, 990, 100_000):
        assert fault_of(nested(depth, padding))[0] is JsonFault.DEPTH


def test_many_brackets_are_no_depth() -> None:
    """C43."""
    check_json(json.dumps([{"a": [1, "[[[[{{{{"]}] * 1000).encode())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values, st.booleans())
def test_whatever_has_a_value_in_other_decoders_is_carried(value: object, is_ascii: bool) -> None:
    """C43: but for halves of surrogate pairs."""
    try:
        text = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        assert fault_of(json.dumps(value).encode())[0] is JsonFault.SURROGATE
        return
    check_json(json.dumps(value).encode() if is_ascii else text)


@given(st.text('0123456789.eE+- ,[]"\\ud', max_size=40), st.booleans())
def test_what_is_carried_is_finite_json(text: str, is_large: bool) -> None:
    """C43: held against another decoder, digit for digit."""
    data = text.encode() + (PADDING if is_large else b"")
    try:
        check_json(data)
    except NotJson:
        return
    numbers: list[float] = []
    json.loads(
        data, parse_int=lambda t: numbers.append(float(t)), parse_float=lambda t: numbers.append(float(t))
    )
    assert all(map(math.isfinite, numbers))

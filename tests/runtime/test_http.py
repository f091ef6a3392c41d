"""Requests whole, in pieces and broken: `services.runtime.http`."""

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.http import MOST_BODY_BYTES, Answer, Exchange, Request, refused

GOOD = b"GET /edge.crt?x=1 HTTP/1.1\r\nHost: hub\r\nNodeName: edge-1\r\nContent-Length: 4\r\n\r\nbody"


def after(*pieces: bytes) -> Request | Answer | None:
    exchange, found = Exchange(), None
    for piece in pieces:
        found = exchange.receive(piece)
        if found is not None:
            return found
    return found


def test_a_request_is_had_whole() -> None:
    found = after(GOOD)
    assert isinstance(found, Request)
    assert (found.method, found.path, found.body) == ("GET", "/edge.crt", b"body")
    assert found.header("nodename") == "edge-1"
    assert found.header("host") == "hub"
    assert found.header("authorization") is None
    assert "edge-1" not in repr(found)


@given(st.integers(1, len(GOOD) - 1), st.integers(1, len(GOOD) - 1))
def test_it_may_come_in_pieces(first: int, second: int) -> None:
    first, second = sorted((first, second))
    pieces = [piece for piece in (GOOD[:first], GOOD[first:second], GOOD[second:]) if piece]
    assert after(*pieces) == after(GOOD)


def test_a_body_in_chunks_is_had_too() -> None:
    found = after(
        b"GET /edge.crt HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
    )
    assert isinstance(found, Request)
    assert found.body == b"body"


def test_a_header_that_is_there_twice_is_none() -> None:
    found = after(GOOD.replace(b"NodeName: edge-1", b"NodeName: edge-1\r\nNodeName: edge-2"))
    assert isinstance(found, Request)
    assert found.header("nodename") is None


def test_what_is_too_large_is_refused() -> None:
    head = b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n"
    large = after(head, b"x" * (MOST_BODY_BYTES + 1))
    assert isinstance(large, Answer)
    assert large.status == 413
    long = after(b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 20_000)
    assert isinstance(long, Answer)
    assert long.status == 431


def test_what_is_cut_short_is_refused() -> None:
    for cut in (GOOD[:10], GOOD[:-1]):
        found = after(cut, b"")
        assert isinstance(found, Answer)
        assert found.status == 400


@given(st.binary(min_size=1, max_size=300) | st.binary(max_size=40).map(lambda data: GOOD[:30] + data))
def test_any_bytes_give_an_answer_that_can_be_written(data: bytes) -> None:
    exchange = Exchange()
    found = exchange.receive(data) or exchange.receive(b"")
    assert found is not None
    answer = found if isinstance(found, Answer) else refused(404, "path", "no")
    assert exchange.answer(answer).startswith(b"HTTP/1.1 4")


def test_an_answer_to_head_has_the_length_of_a_body_and_none() -> None:
    """RFC 9110, 9.3.2: what a stranger asks with must not be what the server fails by."""
    exchange = Exchange()
    found = exchange.receive(b"HEAD /ca.crt HTTP/1.1\r\nHost: hub\r\n\r\n")
    assert isinstance(found, Request)
    answer = exchange.answer(refused(405, "method", "use GET"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Content-Length: 8\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_query_is_apart_from_the_path() -> None:
    found = after(b"GET /metrics?name[]=up HTTP/1.1\r\nHost: hub\r\n\r\n")
    assert isinstance(found, Request)
    assert (found.path, found.query) == ("/metrics", "name[]=up")

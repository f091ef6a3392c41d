"""Calls on a connection as they are seen between client and server: frames in any pieces, nothing changed but
what is refused."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.caller_shares import CallerLimits, CallerShares, Party
from services.runtime.errors import Crowded, HubError
from services.runtime.http2_calls import MOST_REFUSALS, HttpCalls, refusal_frames
from services.runtime.interceptor import trailers_of
from tests.support.raw_http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    message_prefix,
    request_headers,
)

CONTINUATION, PADDED = 9, 8
BLOCK = request_headers("/x.Y/Z")
CANCELLED = (8).to_bytes(4, "big")
HELLO = PREFACE + frame(SETTINGS, 0, 0)
LIMITS = CallerLimits(max_calls_per_caller=3, max_request_bytes=4000, max_message_bytes=2000)


def made(limits: CallerLimits = LIMITS) -> tuple[HttpCalls, Party]:
    party = Party(CallerShares(limits), "CN=shop")
    return HttpCalls(party, trailers_of), party


def request(stream: int, *, ends: bool = False) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if ends else 0), stream, BLOCK)


def answer(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x88")


def frames_of(data: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, stream and payload of each."""
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


def test_calls_are_counted_from_their_headers_to_their_answer() -> None:
    calls, party = made()
    sent = HELLO + request(1, ends=True) + request(3) + frame(PING, 0, 0, bytes(8))
    assert calls.from_client(sent) is sent
    assert (len(calls), party.calls) == (2, 2)
    told = frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, b"\x88") + frame(DATA, 0, 1, b"abc")
    assert calls.from_server(told) is told
    assert party.calls == 2
    calls.from_server(answer(1))
    assert party.calls == 1
    calls.from_client(frame(RST_STREAM, 0, 3, CANCELLED))
    assert (len(calls), party.calls, calls.opened) == (0, 0, 2)


def test_a_call_beyond_the_share_is_answered_here_and_reset_there() -> None:
    """C48: the client reads why; the server keeps nothing; other calls go on."""
    calls, party = made()
    calls.from_server(frame(SETTINGS, 0, 0))
    sent = HELLO + b"".join(request(stream) for stream in (1, 3, 5, 7))
    assert calls.from_client(sent) == sent + frame(RST_STREAM, 0, 7, CANCELLED)
    (refusal,) = calls.refused
    assert refusal.reason == "TOO_MANY_CALLS"
    assert calls.for_client() == refusal_frames(7, trailers_of(refusal))
    assert calls.for_client() == b""
    # What was on its way is passed on: the server's windows count it.
    late = frame(DATA, END_STREAM, 7, message_prefix(100) + bytes(100))
    assert calls.from_client(late) is late
    assert (party.calls, party.held_bytes) == (3, 0)
    calls.from_server(answer(3))
    assert calls.from_client(request(9)) == request(9)
    assert len(calls.refused) == 1


def test_a_refusal_waits_for_the_end_of_a_header_block_on_either_side() -> None:
    calls, _ = made(CallerLimits(max_calls_per_caller=0))
    calls.from_server(frame(SETTINGS, 0, 0) + frame(HEADERS, 0, 99, b"\x88"))
    first, rest = frame(HEADERS, 0, 1, BLOCK[:9]), frame(CONTINUATION, END_HEADERS, 1, BLOCK[9:])
    assert calls.from_client(HELLO + first) == HELLO + first
    assert calls.from_client(rest) == rest + frame(RST_STREAM, 0, 1, CANCELLED)
    assert calls.for_client() == b""
    told = frame(CONTINUATION, END_HEADERS, 99, b"\x88")
    assert calls.from_server(told) == told + refusal_frames(1, trailers_of(calls.refused[0]))


def test_nothing_is_said_before_the_servers_settings() -> None:
    calls, _ = made(CallerLimits(max_calls_per_caller=0))
    calls.from_client(HELLO + request(1))
    assert calls.for_client() == b""
    assert frames_of(calls.from_server(frame(SETTINGS, 0, 0)))[1][:2] == (HEADERS, 1)


def test_a_request_is_held_from_its_length_on_until_it_is_answered() -> None:
    """C48: what is only announced counts, since the server makes room for it."""
    calls, party = made()
    calls.from_client(HELLO + request(1) + frame(DATA, 0, 1, message_prefix(900)))
    assert party.held_bytes == 900
    calls.from_client(request(3) + frame(DATA, 0, 3, message_prefix(200)[:3]))
    calls.from_client(frame(DATA, 0, 3, message_prefix(200)[3:]))
    assert [refusal.reason for refusal in calls.refused] == ["TOO_MANY_BYTES"]
    assert party.held_bytes == 900
    calls.from_client(frame(DATA, END_STREAM, 1, bytes(900)))
    assert party.held_bytes == 900
    calls.from_server(
        frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, b"\x88") + frame(DATA, 0, 1, b"ok")
    )
    assert party.held_bytes == 0
    assert party.calls == 1


def test_a_stream_holds_its_present_message() -> None:
    calls, party = made()
    message = message_prefix(300) + bytes(300)
    calls.from_client(HELLO + request(1) + frame(DATA, 0, 1, message * 5 + message_prefix(50) + bytes(20)))
    assert party.held_bytes == 50
    calls.from_server(frame(DATA, 0, 1, b"answer to the first"))
    assert party.held_bytes == 50
    calls.from_client(frame(DATA, 0, 1, bytes(30)))
    calls.from_server(frame(DATA, 0, 1, b"answer to the last"))
    assert party.held_bytes == 0


def test_a_compressed_message_holds_what_it_may_become() -> None:
    calls, party = made()
    calls.from_client(HELLO + request(1) + frame(DATA, 0, 1, b"\x01" + message_prefix(1)[1:] + b"z"))
    assert party.held_bytes == 0  # 1032 bytes are more than a quarter of 4000
    assert [refusal.reason for refusal in calls.refused] == ["TOO_MANY_BYTES"]
    calls, party = made(CallerLimits(max_request_bytes=10_000, max_message_bytes=2000))
    calls.from_client(HELLO + request(1) + frame(DATA, 0, 1, b"\x01" + message_prefix(500)[1:]))
    assert party.held_bytes == 2000


def test_padding_hides_no_message() -> None:
    calls, party = made()
    hidden = message_prefix(0) + bytes(4)
    calls.from_client(HELLO + request(1))
    calls.from_client(frame(DATA, PADDED, 1, b"\x04" + hidden))
    calls.from_client(frame(DATA, PADDED, 1, b"\xc8" + message_prefix(700) + bytes(200)))
    assert party.held_bytes == 700
    # More padding than there is content is the server's to refuse.
    calls.from_client(frame(DATA, PADDED, 1, b"\xff" + bytes(10)) + frame(DATA, 0, 1, bytes(700)))
    assert party.held_bytes == 700


def test_a_client_that_heeds_no_refusal_is_overrun() -> None:
    """C48: nothing more of it is looked at; what was long ago is forgiven."""
    calls, party = made(CallerLimits(max_calls_per_caller=0))
    for stream in range(1, 2 * MOST_REFUSALS, 2):
        calls.from_client((HELLO if stream == 1 else b"") + request(stream))
    before = calls.overrun
    calls.forgive()
    flood = b"".join(request(stream) for stream in range(501, 501 + 20 * MOST_REFUSALS, 2))
    calls.from_client(flood)
    assert (before, calls.overrun) == (False, True)
    assert len(calls.refused) == 2 * MOST_REFUSALS + 1
    assert calls.from_client(request(99_999)) == b""
    assert party.calls == 0


def test_a_goodbye_answers_every_call_and_says_why() -> None:
    calls, _ = made()
    calls.from_client(HELLO + request(1) + request(3))
    why = Crowded("WHY", "so it is")
    assert frames_of(calls.goodbye(why))[0] == (SETTINGS, 0, b"")
    calls.from_server(frame(SETTINGS, 0, 0)[:5])
    assert calls.goodbye(why) == b""  # amid a frame
    calls.from_server(frame(SETTINGS, 0, 0)[5:])
    said = frames_of(calls.goodbye(why))
    assert [(kind, stream) for kind, stream, _ in said] == [
        *((HEADERS, 1), (RST_STREAM, 1), (HEADERS, 3), (RST_STREAM, 3)),
        (GOAWAY, 0),
    ]
    assert said[-1][2] == (3).to_bytes(4, "big") + (11).to_bytes(4, "big") + b"so it is"


def test_a_long_reason_keeps_its_frame() -> None:
    error = HubError("LONG", "ä" * 2000)
    (head, reset) = frames_of(refusal_frames(5, trailers_of(error)))
    assert (head[0], reset[0]) == (HEADERS, RST_STREAM)
    assert len(head[2]) < 16_384
    assert b"grpc-status" in head[2]


CLIENT = st.lists(
    st.one_of(
        st.sampled_from((1, 3, 5, 7, 9)).map(request),
        st.tuples(st.sampled_from((1, 3, 5, 7, 9)), st.binary(max_size=40)).map(
            lambda one: frame(DATA, 0, one[0], message_prefix(len(one[1])) + one[1])
        ),
        st.tuples(st.sampled_from((1, 3, 5)), st.binary(min_size=1, max_size=30), st.booleans()).map(
            lambda one: frame(DATA, PADDED if one[2] else 0, one[0], one[1])
        ),
        st.sampled_from((1, 3, 5)).map(lambda stream: frame(RST_STREAM, 0, stream, CANCELLED)),
        st.just(frame(PING, 0, 0, bytes(8))),
        st.just(frame(HEADERS, 0, 11, BLOCK[:5]) + frame(CONTINUATION, END_HEADERS, 11, BLOCK[5:])),
    ),
    max_size=12,
)
SERVER = st.lists(
    st.one_of(
        st.sampled_from((1, 3, 5, 7, 9)).map(answer),
        st.tuples(st.sampled_from((1, 3)), st.binary(max_size=40)).map(lambda one: frame(DATA, 0, *one)),
        st.sampled_from((1, 3)).map(lambda stream: frame(RST_STREAM, 0, stream, CANCELLED)),
    ),
    max_size=8,
)


@given(CLIENT, SERVER, st.lists(st.integers(0, 2000), max_size=30))
def test_pieces_make_no_difference(client: list[bytes], server: list[bytes], cuts: list[int]) -> None:
    """What each side gets, and what is counted, is the same however the bytes come; each side gets all that
    the other said, in order, and whole frames besides."""
    up, down = HELLO + b"".join(client), frame(SETTINGS, 0, 0) + b"".join(server)

    def played(up_pieces: list[bytes], down_pieces: list[bytes]) -> tuple[bytes, bytes, int, int]:
        calls, party = made()
        to_server = b"".join(map(calls.from_client, up_pieces))
        to_client = b"".join(calls.from_server(piece) + calls.for_client() for piece in down_pieces)
        counted = (party.calls, party.held_bytes)
        assert party.calls == len(calls) <= LIMITS.max_calls_per_caller
        calls.close()
        assert (party.calls, party.held_bytes) == (0, 0)
        return to_server, to_client, *counted

    whole = played([up], [down])
    split = played(pieces(up, cuts), pieces(down, cuts))
    assert split[0] == whole[0]
    assert split[2:] == whole[2:]
    for to_client in (whole[1], split[1]):
        said = frames_of(to_client)
        ours = [one for one in said if one[0] == HEADERS and b"grpc-status" in one[2]]
        resets = {one[1] for one in ours}
        others = [
            one
            for place, one in enumerate(said)
            if one not in ours and not (one[0] == RST_STREAM and one[2] == bytes(4) and one[1] in resets)
        ]
        assert others == frames_of(down)

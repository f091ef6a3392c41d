"""What the double of a stock edge does, held against the facts of `docs/stock-edges.md`."""

from typing import Any

import msgspec
import pytest

from edge.protocol import Header, Kind, MalformedFrame, Message, Route
from harness.stock_edge.dialling import Dial, Dialling
from harness.stock_edge.flow import MAX_BURST, MAX_INBOUND, Inbound, SendRate
from harness.stock_edge.rules import MetaKey, decide, meta_key, reaches_meta_store, reparsed

POD = b'{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"default","uid":"u"}}'


def message(
    operation: str, source: str = "edgecontroller", group: str = "resource", **header: Any
) -> Message:
    route = Route(source, group, operation, "default/configmap/cm")
    return Message(Header("m1", **header), route, msgspec.Raw(b'{"metadata":{"uid":"u"}}'))


def test_a_round_is_five_dials_each_with_one_more_header() -> None:
    dialling = Dialling()
    dials = [dialling.next() for _ in range(7)]
    assert dials[:5] == [Dial(0, 1), Dial(5, 2), Dial(5, 3), Dial(5, 4), Dial(5, 5)]
    assert dials[5:] == [Dial(35, 1), Dial(5, 2)]


def test_after_a_link_it_rests_thirty_seconds_and_begins_a_round() -> None:
    dialling = Dialling()
    dialling.next()
    dialling.next()
    dialling.lost()
    assert [dialling.next(), dialling.next()] == [Dial(30, 1), Dial(5, 2)]


def test_pace_makes_all_of_it_shorter() -> None:
    dialling = Dialling(pace=10)
    dialling.lost()
    assert [dialling.next(), dialling.next()] == [Dial(3, 1), Dial(0.5, 2)]


@pytest.mark.parametrize(
    ("operation", "source", "group", "kind", "acknowledged"),
    [
        ("insert", "anybody", "resource", Kind.STORE, True),
        ("delete", "anybody", "resource", Kind.DELETE, True),
        ("update", "edgecontroller", "resource", Kind.STORE, True),
        ("update", "dynamiccontroller", "resource", Kind.STORE, True),
        ("update", "devicecontroller", "resource", Kind.STORE, True),
        ("update", "policycontroller", "resource", Kind.STORE, True),
        ("update", "anybody", "resource", Kind.STORE, False),
        ("update", "", "resource", Kind.STORE, False),
        ("patch", "edgecontroller", "resource", Kind.STORE, False),
        ("createvolume", "edgecontroller", "resource", Kind.SWALLOW, False),
        ("insert", "edgecontroller", "", Kind.SWALLOW, False),
        ("insert", "edgecontroller", "twin", Kind.SWALLOW, False),
        ("insert", "edgecontroller", "user", Kind.SWALLOW, False),
    ],
)
def test_what_is_stored_and_what_acknowledged(
    operation: str, source: str, group: str, kind: Kind, acknowledged: bool
) -> None:
    step = decide(message(operation, source, group), ())
    assert (step.kind, step.acknowledge) == (kind, acknowledged)


def test_an_answer_is_taken_while_its_request_waits() -> None:
    answer = message("response", parent_msg_id="asked")
    assert decide(answer, {"asked"}).kind is Kind.ANSWER
    assert decide(answer, {"asked"}).acknowledge
    assert decide(answer, ()).kind is Kind.SWALLOW
    plain = msgspec.structs.replace(answer, content=msgspec.Raw(b'"OK"'))
    assert not decide(plain, {"asked"}).acknowledge


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"9007199254740993", b"9007199254740992"),
        (b"9223372036854775807", b"9223372036854776000"),
        (b"1e3", b"1000"),
        (b"0.1", b"0.1"),
        (b'{"a":[1,2.50,null,"\xc3\xa9"]}', b'{"a":[1,2.5,null,"\xc3\xa9"]}'),
    ],
)
def test_numbers_go_through_float64(sent: bytes, kept: bytes) -> None:
    assert reparsed(sent) == kept


def test_a_number_beyond_a_float64_breaks_its_decoder() -> None:
    with pytest.raises(MalformedFrame, match="1e400 is beyond a float64"):
        reparsed(b'{"limit":1e400}')


def test_the_second_store_knows_an_object_by_its_content_alone() -> None:
    assert meta_key(POD) == MetaKey("v1", "Pod", "default", "web")
    assert meta_key(b"null") is None
    assert meta_key(b'{"metadata":{"name":"web"}}') is None


def test_versions_that_no_int64_holds_do_not_reach_the_second_store() -> None:
    assert reaches_meta_store("9223372036854775807")
    assert not reaches_meta_store("9223372036854775808")
    assert reaches_meta_store("")


def test_a_full_queue_drops_its_oldest_and_tells_nobody() -> None:
    inbound: Inbound[int] = Inbound()
    for number in range(MAX_INBOUND + 20):
        inbound.put(number)
    assert (len(inbound), inbound.dropped, inbound.take()) == (100, 20, 20)
    inbound.clear()
    assert inbound.take() is None


def test_sixty_at_once_then_thirty_a_second() -> None:
    rate = SendRate(0.0)
    assert rate.take(100, 0.0) == MAX_BURST
    assert rate.take(100, 0.0) == 0
    assert rate.next_in() == pytest.approx(1 / 30)
    assert rate.take(100, 1.0) == 30
    assert rate.take(100, 100.0) == MAX_BURST

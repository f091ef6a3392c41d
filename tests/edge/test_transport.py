"""Which transport a node dials, and where."""

from pathlib import Path
from typing import Any, Literal

import pytest

from edge.reconnect import LinkEnd
from edge.settings import EdgeSettings, SettingsFault
from edge.transport import MOST_ROUND_TRIP_SECONDS, FirstRoundTrip, Transport, TransportChoice

_SILENT = LinkEnd("failed", "no answer within 6 s")


def test_each_dial_without_an_answer_makes_the_next_more_patient() -> None:
    """Up to a bound; an answer, or a link, ends it, and a cut in between changes nothing."""
    first = FirstRoundTrip()
    usual = first.seconds
    first.ended(_SILENT)
    assert first.seconds == 2 * usual
    first.ended(LinkEnd("cut"))
    assert first.seconds == 2 * usual
    for _ in range(10):
        first.ended(_SILENT)
    assert first.seconds == MOST_ROUND_TRIP_SECONDS
    first.ended(LinkEnd("refused", "busy", 503, answered=True))
    assert first.seconds == usual
    first.ended(_SILENT)
    first.ended(LinkEnd("lost", open_seconds=1.0))
    assert first.seconds == usual


@pytest.mark.parametrize("wanted", ["websocket", "quic"])
def test_a_transport_that_is_asked_for_is_never_left(wanted: Literal["websocket", "quic"]) -> None:
    choice = TransportChoice(wanted)
    for now in range(5):
        assert choice.next(now) == wanted
        assert not choice.ended(wanted, _SILENT, now)


def test_where_udp_is_blocked_websocket_is_dialled_at_once_and_quic_later() -> None:
    """After a minute, then after two, four, ... an hour at the most."""
    choice = TransportChoice("auto")
    now = 0.0
    for pause in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        assert choice.next(now) == "quic"
        assert choice.ended("quic", _SILENT, now), "the other transport should be dialled at once"
        assert choice.next(now) == "websocket"
        assert not choice.ended("websocket", LinkEnd("lost", open_seconds=5), now)
        assert choice.next(now + pause - 0.1) == "websocket"
        now += pause


def test_quic_that_works_stays_however_its_links_end() -> None:
    choice = TransportChoice("auto")
    for end in (
        LinkEnd("lost", open_seconds=100),
        LinkEnd("silent", open_seconds=45),
        LinkEnd("refused", "full", 429, 5),
        LinkEnd("closed", "drained", 1012, open_seconds=1),
        LinkEnd("failed", "TLS: unknown_ca", answered=True),
    ):
        assert not choice.ended("quic", end, 0.0)
        assert choice.next(0.0) == "quic"


def test_a_link_over_quic_ends_the_growth_of_the_pauses() -> None:
    choice = TransportChoice("auto")
    choice.ended("quic", _SILENT, 0.0)
    choice.ended("quic", _SILENT, 60.0)
    choice.ended("quic", LinkEnd("lost", open_seconds=1), 180.0)
    choice.ended("quic", _SILENT, 181.0)
    assert choice.next(240.9) == "websocket"
    assert choice.next(241.1) == "quic"


def _settings(server: str, quic_server: str = "", transport: Transport = "quic") -> EdgeSettings:
    paths: dict[str, Any] = {"ca": Path("ca"), "database": Path("db"), "certificates": Path("c")}
    return EdgeSettings(server=server, quic_server=quic_server, transport=transport, **paths)


@pytest.mark.parametrize(
    ("server", "quic_server", "addresses"),
    [
        ("wss://hub:10000", "", [("hub", 10001)]),
        ("wss://hub", "", [("hub", 10001)]),
        ("wss://[::1]:10000", "", [("::1", 10001)]),
        ("wss://[::1]", "", [("::1", 10001)]),
        ("wss://a:1,wss://b:2, wss://a:3", "", [("a", 10001), ("b", 10001)]),
        ("wss://hub:10000", "quic://other:7, quic://[fe80::1]:8", [("other", 7), ("fe80::1", 8)]),
    ],
)
def test_quic_is_dialled_at_the_same_hosts_unless_told(
    server: str, quic_server: str, addresses: list[tuple[str, int]]
) -> None:
    settings = _settings(server, quic_server)
    assert [settings.quic_address(each) for each in settings.quic_servers] == addresses


@pytest.mark.parametrize(
    "quic_server", ["hub:1", "wss://hub:1", "quic://hub", "quic://hub:1/x", "quic://hub:x"]
)
def test_an_address_that_is_none_is_told(quic_server: str) -> None:
    with pytest.raises(SettingsFault, match="should be quic://HOST:PORT"):
        _settings("wss://hub:1", quic_server)


def test_a_dial_that_has_another_to_follow_gives_up_sooner() -> None:
    assert _settings("wss://hub", transport="auto").quic_open_seconds == 6
    assert _settings("wss://hub", transport="quic").quic_open_seconds == 15

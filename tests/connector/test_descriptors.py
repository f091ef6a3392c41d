"""Descriptors: what a connector does with few of them, and when there are none."""

import asyncio
import errno
import os
import socket
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from services.connector import app as connector_app
from services.connector.descriptors import LEAST, RESERVED, Shares, divide, shortage
from services.runtime.acceptor import Accepted, Acceptor
from services.runtime.errors import StartupError
from services.runtime.openings import OpeningLimits, Openings
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers
from tests.support.strangers import strangers

WANTED = Shares(links=20_000, openings=1024, waiting=4096)


@given(
    st.integers(LEAST, 100_000),
    st.builds(Shares, st.integers(1, 50_000), st.integers(1, 5000), st.integers(1, 9000)),
)
def test_everybody_has_something_and_nobody_takes_what_is_reserved(limit: int, wanted: Shares) -> None:
    """C47: whatever strangers do, links have descriptors, and so has the rest of the process."""
    granted = divide(limit, wanted)
    assert min(granted.links, granted.openings, granted.waiting) >= 1
    assert granted.descriptors <= limit - min(RESERVED, limit // 2)
    assert granted.links <= wanted.links
    assert granted.openings <= wanted.openings
    assert granted.waiting <= wanted.waiting
    enough = limit >= wanted.descriptors + max(RESERVED, wanted.descriptors)
    assert granted == wanted or not enough
    assert (shortage(limit, wanted, granted) is None) == (granted == wanted)


def test_an_operator_is_told_what_is_short_and_what_would_do() -> None:
    granted = divide(1200, WANTED)
    assert granted == Shares(links=344, openings=86, waiting=172)
    text = shortage(1200, WANTED, granted)
    assert text is not None
    assert "holds 344 links" in text
    enough = WANTED.descriptors + RESERVED
    assert f"raise it to {enough} " in text
    assert divide(enough, WANTED) == WANTED
    with pytest.raises(StartupError, match=f"is 63: a connector needs {LEAST} at least, and {enough} for"):
        divide(LEAST - 1, WANTED)


async def test_with_few_descriptors_some_links_are_refused_and_strangers_take_none_of_the_others(
    start_app: StartApp, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector_app, "descriptor_limit", lambda: LEAST)
    shares = divide(LEAST, WANTED)
    async with start_app() as app:
        peers = EdgePeers(authority, app.edge_port)
        async with strangers(app.edge_port, 100):
            await poll(lambda: metric(app, "waiting_connections", transport="websocket") == shares.waiting)
            links = [await peers.open(f"edge-{number}") for number in range(shares.links)]
            with pytest.raises(InvalidStatus) as refused:
                await peers.open("one-more")
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["Retry-After"]
            assert metric(app, "refusals_total", reason="descriptors") == 1
            # Who may have no link at all is told that, not to come back.
            with pytest.raises(InvalidStatus) as foreign:
                await peers.open("one-more", context=peers.context("edge-0"))
            assert foreign.value.response.status_code == 403
            assert metric(app, "refusals_total", reason="certificate_node") == 1
            await links.pop().close()
            await poll(lambda: app.listener.links < shares.links)
            links.append(await peers.open("one-more"))
            for link in links:
                await link.close()


class Exhausted(socket.socket):
    """A listening socket of a process that has no descriptors left, at times."""

    is_out = False
    tries = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if self.is_out:
            self.tries += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


class Watching:
    """Begins nothing, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()

    async def begin(self, accepted: Accepted) -> None:
        self.told["begun"] += 1

    def turned_away(self, accepted: Accepted, reason: str) -> None:
        self.told[reason] += 1

    def accept_failed(self, error: OSError) -> None:
        self.told["failed"] += 1

    def turns_wait(self) -> None:
        self.told["waits"] += 1


async def test_out_of_descriptors_it_spares_a_silent_one_and_does_not_spin() -> None:
    """C47: the listener lives on, the silent give up their descriptors one by one."""
    listening = Exhausted()
    listening.setblocking(False)
    listening.bind(("127.0.0.1", 0))
    listening.listen(16)
    user = Watching()
    openings: Openings[Any] = Openings(OpeningLimits(4, 4))
    acceptor = Acceptor(listening, openings, user, silence_seconds=30.0)
    running = asyncio.create_task(acceptor.run())
    async with strangers(acceptor.port, 1):
        await poll(lambda: acceptor.waiting == 1)
        listening.is_out = True
        async with strangers(acceptor.port, 1):
            await poll(lambda: user.told["failed"] >= 3)
            assert user.told["crowded_out"] == 1
            began, tries = asyncio.get_running_loop().time(), listening.tries
            await poll(lambda: listening.tries >= tries + 4)
            assert asyncio.get_running_loop().time() - began > 0.1, "it tries without a rest"
            listening.is_out = False
            await poll(lambda: acceptor.waiting == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert listening.fileno() < 0

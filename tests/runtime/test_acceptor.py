"""How many connections an event loop is made to look at in one of its turns: `services.runtime.acceptor`."""

import asyncio
import socket
from itertools import pairwise
from typing import Any

from services.runtime.acceptor import _MOST_AT_ONCE, _MOST_BEGUN, Accepted, Acceptor
from services.runtime.listening import tcp_listener
from services.runtime.openings import OpeningLimits, Openings

FLOOD = 200


class User:
    """Counts what begins in each turn of the loop."""

    def __init__(self) -> None:
        self.turn = 0
        self.begun: list[int] = []

    async def begin(self, accepted: Accepted) -> None:
        """See `acceptor.AcceptorUser`."""
        self.begun.append(self.turn)
        accepted.socket.close()

    def turned_away(self, accepted: Accepted, reason: str) -> None:
        """See `acceptor.AcceptorUser`."""
        raise AssertionError(reason)

    def accept_failed(self, error: OSError) -> None:
        """See `acceptor.AcceptorUser`."""
        raise error

    def turns_wait(self) -> None:
        """See `acceptor.AcceptorUser`."""


async def test_a_flood_is_accepted_and_begun_in_portions_and_others_have_their_turn() -> None:
    """Hundreds that come in one moment: the loop gets to everybody else between them, and all are begun."""
    user = User()
    openings: Openings[Any] = Openings(OpeningLimits(max_openings=FLOOD, max_waiting=FLOOD))
    listening = tcp_listener("127.0.0.1:0", "a test", FLOOD)
    clients = [socket.create_connection(listening.getsockname()) for _ in range(FLOOD)]
    for client in clients:
        client.sendall(b"x")
    waiting: list[int] = []

    async def bystander() -> None:
        while len(user.begun) < FLOOD:
            user.turn += 1
            waiting.append(openings.waiting + openings.at_work)
            await asyncio.sleep(0)

    acceptor = Acceptor(listening, openings, user, silence_seconds=10.0)
    running = asyncio.create_task(acceptor.run())
    await asyncio.wait_for(bystander(), 20)
    assert max(user.begun.count(turn) for turn in set(user.begun)) <= _MOST_BEGUN
    assert max(after - before for before, after in pairwise(waiting)) <= _MOST_AT_ONCE
    running.cancel()
    await asyncio.wait([running])
    for client in clients:
        client.close()

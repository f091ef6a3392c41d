"""When a connection is called because nothing came: on the loop's clock, and after what did come."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.connector.app import ConnectorApp
from services.connector.quic.connection import HubConnection
from services.connector.quic.timer import QuicTimer
from tests.connector.conftest import poll


class Turn:
    """A timer, what it is due at, and when it called."""

    def __init__(self, *, behind: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.behind = behind
        self.at: float | None = self.loop.time()
        self.called: asyncio.Future[float] = self.loop.create_future()
        quic = cast("HubConnection", SimpleNamespace(get_timer=lambda: self.at))
        self.looked = asyncio.Event()
        self.timer = QuicTimer(self.loop, quic, self._is_behind)

    def _is_behind(self) -> bool:
        self.looked.set()
        return self.behind

    def arm(self) -> None:
        self.timer.arm(self.loop.time(), self.called.set_result)


async def test_it_calls_when_it_is_due() -> None:
    turn = Turn(behind=False)
    turn.arm()
    assert turn.at is not None
    assert await asyncio.wait_for(turn.called, 5) >= turn.at


async def test_what_came_is_read_first() -> None:
    """The hub is behind: nobody can know yet that nothing came."""
    turn = Turn(behind=True)
    turn.arm()
    began = turn.loop.time()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(turn.called), 0.3)
    turn.behind = False
    await asyncio.wait_for(turn.called, 5)
    assert turn.loop.time() - began < 1.5


async def test_a_timer_that_fires_within_the_clocks_tick_reads_first_too() -> None:
    """The loop's clock is coarser than the times it is given: it often calls just before they are due."""
    turn = Turn(behind=True)
    tick = 0.0005
    turn.at = turn.loop.time() + tick
    turn.arm()
    turn.loop.time = lambda: turn.at - tick if turn.at else 0.0  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(turn.called), 0.3)


async def test_what_came_meanwhile_can_make_it_superfluous() -> None:
    turn = Turn(behind=True)
    turn.arm()
    await asyncio.wait_for(turn.looked.wait(), 5)
    turn.at = None  # the answer was read
    turn.behind = False
    turn.timer.arm(turn.loop.time(), turn.called.set_result)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(turn.called, 0.3)


async def test_a_hub_that_is_behind_for_long_calls_all_the_same() -> None:
    """Else what was lost would never be sent again."""
    turn = Turn(behind=True)
    assert turn.at is not None
    turn.arm()
    assert 1.5 < await asyncio.wait_for(turn.called, 10) - turn.at < 5


async def test_the_listener_knows_that_datagrams_wait(app: ConnectorApp) -> None:
    listener: Any = app.quic
    assert not listener.behind()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as edge:
        edge.sendto(b"\x00" * 21, ("127.0.0.1", app.quic_port))  # the loop has had no turn to read it
        assert listener.behind()
    await poll(lambda: not listener.behind())

"""One heap of deadlines: `services.dispatcher.deadlines`."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from services.dispatcher.deadlines import Deadlines
from services.runtime.clock import SystemClock
from tests.support.dispatcher import SteppedClock


class Token(str):
    """A name that can be held weakly."""


@asynccontextmanager
async def running(fire: Callable[[Token], None]) -> AsyncIterator[Deadlines[Token]]:
    deadlines = Deadlines(SystemClock(), fire)
    task = asyncio.create_task(deadlines.run())
    yield deadlines
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_tokens_fire_in_order_of_their_instants_and_not_before() -> None:
    clock, fired = SteppedClock(100.0), list[Token]()
    tokens = [(at, Token(name)) for at, name in ((103.0, "c"), (101.0, "a"), (102.0, "b"), (102.0, "b2"))]
    deadlines = Deadlines(clock, fired.append)
    for at, token in tokens:
        deadlines.set(at, token)
    deadlines.fire_due()
    assert fired == []
    clock.advance(2.0)
    deadlines.fire_due()
    assert fired == ["a", "b", "b2"]
    assert len(deadlines) == 1


def test_a_token_that_is_over_is_neither_kept_nor_fired() -> None:
    """C2, invariant 6: an ended session is not in memory until the last of its deadlines."""
    clock, fired = SteppedClock(100.0), list[Token]()
    deadlines = Deadlines(clock, fired.append)
    deadlines.set(101.0, Token("over"))
    gc.collect()
    assert not any(isinstance(thing, Token) for thing in gc.get_objects())
    clock.advance(2.0)
    deadlines.fire_due()
    assert (fired, len(deadlines)) == ([], 0)


def test_a_token_may_set_the_next_one_while_it_fires() -> None:
    clock, fired = SteppedClock(100.0), list[Token]()
    first, again = Token("first"), Token("again")

    def fire(token: Token) -> None:
        fired.append(token)
        if len(fired) < 3:
            deadlines.set(100.0, again)

    deadlines = Deadlines(clock, fire)
    deadlines.set(100.0, first)
    deadlines.fire_due()
    assert fired == ["first", "again", "again"]


def test_the_last_deadline_that_was_set_is_the_one() -> None:
    clock, fired = SteppedClock(100.0), list[Token]()
    token, other = Token("token"), Token("other")
    deadlines = Deadlines(clock, fired.append)
    for at, one in ((101.0, token), (103.0, token), (104.0, other), (102.0, other)):
        deadlines.set(at, one)
    assert len(deadlines) == 2
    counts = []
    for _ in range(5):
        clock.advance(1.0)
        deadlines.fire_due()
        counts.append(list(fired))
    assert counts == [[], ["other"], ["other", "token"], ["other", "token"], ["other", "token"]]
    assert (len(deadlines), deadlines.entries) == (0, 0)


def test_deadlines_that_were_replaced_do_not_pile_up() -> None:
    """Invariant 6: a session with one message that expires in a week, and others that come and go."""
    clock, fired = SteppedClock(100.0), list[Token]()
    session = Token("session")
    deadlines = Deadlines(clock, fired.append)
    for _ in range(10_000):
        deadlines.set(clock.monotonic() + 7 * 86_400.0, session)
        deadlines.set(clock.monotonic() + 5.0, session)
        clock.advance(5.0)
        deadlines.fire_due()
    assert len(fired) == 10_000
    assert deadlines.entries < 100


def test_deadlines_of_ended_sessions_do_not_pile_up() -> None:
    """C2, invariant 6: ten thousand links, each with a deadline in a week."""
    clock, fired = SteppedClock(100.0), list[Token]()
    deadlines = Deadlines(clock, fired.append)
    living = Token("living")
    deadlines.set(clock.monotonic() + 86_400.0, living)
    for number in range(10_000):
        deadlines.set(clock.monotonic() + 7 * 86_400.0, Token(str(number)))
    assert (len(deadlines), deadlines.entries < 100) == (1, True)
    clock.advance(86_400.0)
    deadlines.fire_due()
    assert fired == ["living"]


async def test_an_earlier_deadline_wakes_the_waiting_task() -> None:
    fired = asyncio.Queue[Token]()
    late, soon, past = Token("late"), Token("soon"), Token("past")
    async with running(fired.put_nowait) as deadlines:
        deadlines.set(time.monotonic() + 3600, late)
        await asyncio.wait_for(asyncio.shield(asyncio.sleep(0)), 1)
        deadlines.set(time.monotonic() + 0.01, soon)
        assert await asyncio.wait_for(fired.get(), 5) == "soon"
        deadlines.set(time.monotonic() - 1, past)
        assert await asyncio.wait_for(fired.get(), 5) == "past"
        assert len(deadlines) == 1

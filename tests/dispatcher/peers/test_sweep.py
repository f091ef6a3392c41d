"""The owner's look at the outbox, over one outbox that another dispatcher writes to as well."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.dispatcher.actions import Reread
from services.dispatcher.outbox.records import Accepted
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.peers.sweep import Sweep
from services.runtime.errors import StoreUnavailable
from tests.support.dispatcher import DeliveryHalf, running_delivery_half
from tests.support.outbox import accept, publication


def sweep_of(half: DeliveryHalf) -> Sweep:
    return Sweep(half.delivery, half.outbox, PeerMetrics(CollectorRegistry()), 3600.0)


async def test_what_another_dispatcher_committed_is_found_and_sent() -> None:
    """C34, C38: without a hint."""
    async with running_delivery_half() as half:
        await half.connect("edge-1")
        sweep = sweep_of(half)
        await half.outbox.commit([accept(publication(1, message_id="m1"))])
        assert await sweep.once() == 0
        assert await sweep.once() == 1
        await half.settled()
        await asyncio.sleep(0)
        assert half.delivery.sessions["edge-1"].policy.last_seq == 1
        assert await sweep.once() == 0


async def test_what_was_committed_here_and_is_told_between_two_looks_is_not_read_again() -> None:
    async with running_delivery_half() as half:
        session = await half.connect("edge-1")
        sweep = sweep_of(half)
        (first,) = await half.outbox.commit([accept(publication(1, message_id="m1"))])
        assert await sweep.once() == 0
        assert isinstance(first, Accepted)
        half.delivery.committed("edge-1", first)
        assert session.policy.last_seq == 1
        (second,) = await half.outbox.commit([accept(publication(2, message_id="m2"))])
        assert await sweep.once() == 0
        assert isinstance(second, Accepted)
        half.delivery.committed("edge-1", second)
        assert await sweep.once() == 0


async def test_a_session_that_is_reading_is_not_asked_to_read_again() -> None:
    """Under load a reading takes longer than the time between two looks: it would never end."""
    async with running_delivery_half() as half:
        session = await half.connect("edge-1")
        sweep = sweep_of(half)
        await half.outbox.commit([accept(publication(1, message_id="m1"))])
        assert await sweep.once() == 0
        assert session.policy.reread() == [Reread()]
        assert half.delivery.last_seqs(["edge-1"]) == {"edge-1": None}
        assert await sweep.once() == 0
        assert session.policy.reloaded([], 0, 0.0, 0) == []
        assert half.delivery.last_seqs(["edge-1"]) == {"edge-1": 0}
        assert await sweep.once() == 0
        assert await sweep.once() == 1


async def test_what_another_dispatcher_purged_is_not_sent_any_more() -> None:
    async with running_delivery_half() as half:
        session = await half.connect("edge-1")
        session.policy.paused(True, 0.0)
        await half.outbox.commit([accept(publication(1, message_id="m1"))])
        sweep = sweep_of(half)
        await sweep.once()
        await sweep.once()
        await half.settled()
        assert session.policy.state_of(publication(1).key) is not None
        await half.outbox.purge("edge-1", "", half.clock.wall_ms())
        await sweep.once()
        assert await sweep.once() == 1
        await half.settled()
        assert session.policy.state_of(publication(1).key) is None


async def test_a_store_that_is_away_ends_one_look_and_no_more() -> None:
    async with running_delivery_half() as half:
        await half.connect("edge-1")
        half.outbox.away = True
        with pytest.raises(StoreUnavailable):
            await sweep_of(half).once()
        half.outbox.away = False
        assert await sweep_of(half).once() == 0

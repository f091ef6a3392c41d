"""What each caller may have of the subscriptions and of the modules that they name."""

from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.dispatcher.upstream.routing import HUB_MODULES
from services.dispatcher.upstream.settings import UpstreamSettings
from services.dispatcher.upstream.subscriber_shares import (
    MAX_MODULES,
    TOO_MANY_MODULES,
    TOO_MANY_SUBSCRIPTIONS,
    Subscribed,
    SubscriberShares,
)
from services.runtime.errors import Crowded
from services.runtime.rpc import error_reason
from tests.support.upstream import event, open_hub, report


def enter(shares: SubscriberShares, caller: str, *modules: str) -> Subscribed | str:
    """What came of it: the subscription, or the reason of its refusal."""
    try:
        return shares.enter(caller, modules)
    except Crowded as error:
        return error.reason


def fill(shares: SubscriberShares, caller: str) -> int:
    """How many subscriptions the caller gets."""
    number = 0
    while isinstance(got := enter(shares, caller, "router"), Subscribed):
        number += 1
    assert got == TOO_MANY_SUBSCRIPTIONS
    return number


def name_modules(shares: SubscriberShares, caller: str) -> int:
    """How many modules of its own the caller gets in."""
    number = 0
    while isinstance(got := enter(shares, caller, f"{caller}-{number}"), Subscribed):
        number += 1
    assert got == TOO_MANY_MODULES
    return number


def test_few_callers_cannot_use_the_subscriptions_up() -> None:
    """Greedy ones get as many as they leave; one that has none finds room, and so do those after it."""
    shares = SubscriberShares(64)
    greedy = [fill(shares, f"greedy-{number}") for number in range(8)]
    assert greedy[0] == 24
    assert min(greedy) >= 1
    for number in range(8):
        shares.enter(f"modest-{number}", ["router"])


def test_few_callers_cannot_use_the_modules_up() -> None:
    """The hub's own need no room at all."""
    shares = SubscriberShares(1024)
    greedy = [name_modules(shares, f"greedy-{number}") for number in range(6)]
    assert greedy[0] == 23
    assert min(greedy) >= 1
    shares.enter("modest", ["audit", *HUB_MODULES])
    assert shares.modules <= MAX_MODULES - len(HUB_MODULES)
    shares.enter("greedy-0", [*HUB_MODULES, "greedy-1-0"])


def test_a_refused_subscription_takes_nothing() -> None:
    """Neither its modules nor its place."""
    shares = SubscriberShares(1024, max_modules=8)
    with pytest.raises(Crowded, match="module 'm-3' has no room: greedy has named 0 "):
        shares.enter("greedy", [f"m-{number}" for number in range(8)])
    assert shares.modules == 0
    for number in range(3):
        shares.enter("other", [f"o-{number}"])


class SharesMachine(RuleBasedStateMachine):
    """Whatever comes and goes: what is taken is what is open, and goes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = SubscriberShares(12, max_modules=8)
        self.open: list[Subscribed] = []

    @rule(
        caller=st.sampled_from("abc"),
        modules=st.lists(st.sampled_from(["router", *(f"m{number}" for number in range(12))]), max_size=5),
    )
    def enter(self, caller: str, modules: list[str]) -> None:
        before = self.shares.modules
        got = enter(self.shares, caller, *modules)
        if isinstance(got, Subscribed):
            self.open.append(got)
        else:
            assert got in (TOO_MANY_MODULES, TOO_MANY_SUBSCRIPTIONS)
            assert self.shares.modules == before
            assert self.open or len(set(modules)) > 3, "nobody has anything"

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.open:
            self.shares.leave(self.open.pop(data.draw(st.integers(0, len(self.open) - 1))))

    @invariant()
    def it_is_what_is_open(self) -> None:
        named = {module for one in self.open for module in one.modules}
        assert self.shares.modules == len(named) <= 8
        assert len(self.open) <= 12

    def teardown(self) -> None:
        for one in self.open:
            self.shares.leave(one)
        assert self.shares.modules == 0
        assert fill(self.shares, "a") == 5


SharesMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestShares = SharesMachine.TestCase


async def test_a_caller_with_too_many_subscriptions_is_refused_and_another_is_not(tmp_path: Path) -> None:
    """What the other one gets is what it always got; when the first one's end there is room again."""
    async with (
        open_hub(tmp_path, settings=UpstreamSettings(max_subscriptions=16)) as hub,
        AsyncExitStack() as own,
    ):
        for _ in range(6):
            await own.enter_async_context(hub.subscriber("devicecontroller", caller="greedy"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await own.enter_async_context(hub.subscriber("devicecontroller", caller="greedy"))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_reason(refused.value) == TOO_MANY_SUBSCRIPTIONS
        assert hub.metric("subscriptions_refused_total", reason="too_many_subscriptions") == 1
        async with hub.subscriber("edgecontroller", caller="modest") as cloud:
            hub.receive("edge-1", 5, report("p1"))
            assert [one.message.resource for one in await cloud.take(1)] == [
                "node/edge-1/default/podstatus/p1"
            ]
        await own.aclose()
        await hub.until(lambda: hub.metric("subscribers") == 0)
        async with hub.subscriber("devicecontroller", caller="greedy"):
            assert hub.metric("subscribers") == 1


async def test_copies_of_events_for_named_modules_are_bounded_and_the_hubs_own_come(tmp_path: Path) -> None:
    """Each event has a copy per module that somebody named: 64 at most, whoever asks for more."""
    async with open_hub(tmp_path) as hub, AsyncExitStack() as own:
        counts: dict[str, int] = defaultdict(int)
        for caller in ("first", "second", "third"):
            for number in range(40):
                try:
                    await own.enter_async_context(hub.subscriber(f"{caller}-{number}", caller=caller))
                except grpc.aio.AioRpcError as error:
                    assert error_reason(error) == TOO_MANY_MODULES  # noqa: PT017  # some are not refused
                    break
                counts[caller] += 1
        assert counts["first"] > counts["second"] > counts["third"] > 1
        assert hub.metric("modules") == sum(counts.values()) < MAX_MODULES
        cloud = await own.enter_async_context(hub.subscriber("edgecontroller", caller="modest"))
        hub.upstream.session_opened(event("edge-1", 5, "connected"))
        assert [one.message.operation for one in await cloud.take(1)] == ["connected"]
        assert len(hub.upstream.served()) <= MAX_MODULES

"""Whom `nodes` asks where several dispatchers are given, and what it makes of the answers: `ctl.hub`."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudhub.v1.dispatcher_pb2 import (
    InspectNodeRequest,
    InspectNodeResponse,
    NodeDelivery,
    SilentDispatcher,
)
from ctl.hub import Access, Hub
from ctl.processes import Dispatcher, NodesFound, merged


class One:
    """A dispatcher that holds a session of `here`; `others` is what it answers of those it asked."""

    def __init__(self, here: str, silent: tuple[str, ...] = (), *, old: bool = False) -> None:
        self.address = f"{here}:50051"
        self.here = here
        self.silent = silent
        self.old = old
        self.asked: list[bool] = []

    async def nodes(self, prefix: str, *, everywhere: bool, **_: object) -> NodesFound:
        """See Dispatcher."""
        self.asked.append(everywhere)
        nodes = [NodeDelivery(node_id=one, connected=one == self.here) for one in ("a", "b")]
        silent = [SilentDispatcher(dispatcher_id=one, name=one, address=f"{one}:1") for one in self.silent]
        return NodesFound(nodes, silent if everywhere else [], everywhere and not self.old)

    async def call(self, _: object, request: InspectNodeRequest) -> InspectNodeResponse:
        """See Dispatcher."""
        node = NodeDelivery(node_id=request.node_id, connected=request.node_id == self.here)
        silent = [SilentDispatcher(dispatcher_id=one, name=one, address=f"{one}:1") for one in self.silent]
        return InspectNodeResponse(node=node, everywhere=not self.old, silent=silent)

    admin = SimpleNamespace(InspectNode=None)


def hub_of(*dispatchers: One) -> Hub:
    """All of which answer."""
    hub = Hub(Access("a:1", "s:1", "c:1"))
    hub._reachable = cast("list[Dispatcher]", list(dispatchers))
    return hub


@pytest.mark.parametrize(
    ("first", "asks_others", "told"),
    [
        (One("a"), False, ""),
        (One("a", ("b",)), True, "dispatcher b at b:1 did not answer the dispatcher at a:50051"),
        (One("a", old=True), True, ""),
    ],
    ids=["all answered", "one was silent", "of an older release"],
)
async def test_one_is_asked_and_the_others_where_it_could_not_ask_them(
    first: One, asks_others: bool, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    second = One("b")
    found = await hub_of(first, second).nodes()
    assert (first.asked, second.asked) == ([True], [False] if asks_others else [])
    assert [(one.node_id, one.connected) for one in found] == [("a", True), ("b", asks_others)]
    said = capsys.readouterr().err
    assert told in said
    assert "is not known" not in said


async def test_what_nobody_could_ask_is_told_as_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    await hub_of(One("a", ("b",))).nodes()
    assert "what is in flight there is not known" in capsys.readouterr().err


def test_of_several_answers_the_holder_knows_what_is_in_flight() -> None:
    def found(*nodes: NodeDelivery) -> NodesFound:
        return NodesFound(list(nodes), [], asked_others=False)

    def node(name: str, **fields: Any) -> NodeDelivery:
        return NodeDelivery(node_id=name, **fields)

    answers = [
        found(node("b", last_note="old: x"), node("a", connected=True, in_flight=3)),
        found(node("a", last_note="noted: y"), node("b", connected=True, in_flight=1)),
    ]
    assert merged(answers) == [
        node("a", connected=True, in_flight=3, last_note="noted: y"),
        node("b", connected=True, in_flight=1, last_note="old: x"),
    ]


@pytest.mark.parametrize(
    ("first", "node", "answered_by", "told"),
    [
        (One("a"), "b", "a", ""),
        (One("a", ("b",)), "b", "b", "b:1 did not answer the dispatcher at a:50051 ()\n"),
        (One("a", ("b",)), "a", "a", "(); what is in flight there is not known\n"),
        (One("a", ("c",)), "c", "a", "(); what is in flight there is not known\n"),
        (One("a", old=True), "b", "b", ""),
        (One("a", old=True), "c", "a", ""),
    ],
    ids=[
        "all answered",
        "the holder was silent",
        "another was silent",
        "one that is not given was silent",
        "of an older release",
        "nobody holds it",
    ],
)
async def test_about_a_node_its_holder_is_asked_where_the_first_could_not_ask_it(
    first: One, node: str, answered_by: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = hub_of(first, One("b"))

    async def ask(one: Any) -> list[InspectNodeResponse]:
        answer: InspectNodeResponse = await one.call(None, InspectNodeRequest(node_id=node))
        answer.next_page_token = one.here
        return [answer]

    (page,) = await hub.everywhere(node, ask)
    assert page.next_page_token == answered_by
    said = capsys.readouterr().err
    assert said.endswith(told)
    assert bool(said) == bool(told)

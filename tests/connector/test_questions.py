"""What operators ask by way of a dispatcher: `services.connector.questions`."""

import asyncio
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from cloudhub.v1.connector_pb2 import DrainRequest, DrainResponse, ListLinksRequest, ListLinksResponse
from cloudhub.v1.link_pb2 import ConnectorAnswer, ConnectorQuestion, DispatcherBatch
from services.connector.app import ConnectorApp
from services.connector.outgoing import OutgoingBatches
from services.connector.questions import MAX_QUESTIONS, Questions
from services.runtime.errors import InvalidRequest
from tests.support.edge_peer import EdgePeers
from tests.support.link_dispatcher import LinkDispatcher


def answers(dispatcher: LinkDispatcher) -> dict[int, ConnectorAnswer]:
    """All that have come, by number."""
    return {one.number: one for batch in dispatcher.batches for one in batch.answers}


async def asked(dispatcher: LinkDispatcher, *questions: ConnectorQuestion) -> list[ConnectorAnswer]:
    """In one batch."""
    dispatcher.send(DispatcherBatch(questions=questions))
    await dispatcher.until(lambda: all(one.number in answers(dispatcher) for one in questions))
    return [answers(dispatcher)[one.number] for one in questions]


async def test_links_are_told_as_the_connector_tells_them_and_faults_with_their_field(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    opened = [await peers.open(node) for node in ("edge-1", "edge-2")]
    first, wrong, unknown = await asked(
        dispatcher,
        ConnectorQuestion(number=1, list_links=ListLinksRequest(page_size=1)),
        ConnectorQuestion(number=2, list_links=ListLinksRequest(page_size=1001)),
        ConnectorQuestion(number=3),
    )
    assert [link.node_id for link in first.links.links] == ["edge-1"]
    assert (first.links.next_page_token, first.links.total) == ("edge-1/1", 2)
    assert (wrong.reason, wrong.field) == ("INVALID_FIELD", "page_size")
    assert "should be at most 1000" in wrong.detail
    assert (unknown.reason, unknown.detail) == (
        "QUESTION_UNKNOWN",
        "its release does not know the question",
    )
    for peer in opened:
        await peer.close()


async def test_a_drain_asked_for_closes_every_link_and_others_are_answered_meanwhile(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C11, by way of a dispatcher: the answer comes when all are closed."""
    opened = [await peers.open(f"edge-{number}") for number in range(3)]
    drain = ConnectorQuestion(number=1, drain=DrainRequest(links_per_second=0.01, deadline_seconds=0.5))
    dispatcher.send(DispatcherBatch(questions=[drain]))
    [meanwhile] = await asked(dispatcher, ConnectorQuestion(number=2, list_links=ListLinksRequest()))
    assert 1 not in answers(dispatcher)
    assert meanwhile.links.total > 0
    await dispatcher.until(lambda: 1 in answers(dispatcher))
    assert answers(dispatcher)[1].drained.closed == 3
    for peer in opened:
        with pytest.raises(ConnectionClosed) as closed:
            await peer.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


class Admin:
    """Drains when it is told to; a list of links is broken, or refused."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def Drain(self, request: DrainRequest, context: object) -> DrainResponse:
        """See connector.proto."""
        await self.may_end.wait()
        return DrainResponse(closed=1)

    async def ListLinks(self, request: ListLinksRequest, context: object) -> ListLinksResponse:
        """See connector.proto."""
        if request.page_token:
            raise InvalidRequest("page_token", "is none")
        raise LookupError("a fault of ours")


def taken(outgoing: OutgoingBatches) -> list[ConnectorAnswer]:
    """What waits on the way."""
    found: list[ConnectorAnswer] = []
    while (batch := outgoing.take()) is not None:
        found += batch[0].answers
    return found


async def test_so_many_questions_are_under_way_and_the_next_is_refused_at_once() -> None:
    """Of all dispatchers together; one more is answered when one has ended."""
    admin: Any = Admin()
    questions = Questions(admin)
    greedy, other = OutgoingBatches(lambda: None), OutgoingBatches(lambda: None)
    questions.asked(
        greedy, [ConnectorQuestion(number=one, drain=DrainRequest()) for one in range(1, MAX_QUESTIONS + 2)]
    )
    assert [(one.number, one.reason) for one in taken(greedy)] == [(MAX_QUESTIONS + 1, "TOO_MANY_QUESTIONS")]
    admin.may_end.set()
    await asyncio.wait(list(questions._under_way))
    assert len(taken(greedy)) == MAX_QUESTIONS
    questions.asked(other, [ConnectorQuestion(number=1, drain=DrainRequest())])
    await asyncio.wait(list(questions._under_way))
    assert [one.drained.closed for one in taken(other)] == [1]


async def test_a_fault_is_told_and_ends_nothing_else_and_a_close_ends_all() -> None:
    admin: Any = Admin()
    questions, outgoing = Questions(admin), OutgoingBatches(lambda: None)
    questions.asked(outgoing, [ConnectorQuestion(number=1, list_links=ListLinksRequest())])
    questions.asked(outgoing, [ConnectorQuestion(number=2, drain=DrainRequest())])
    await asyncio.wait(list(questions._under_way), return_when=asyncio.FIRST_COMPLETED)
    [failed] = taken(outgoing)
    assert (failed.number, failed.reason) == (1, "INTERNAL")
    questions.close()
    await asyncio.wait(list(questions._under_way))
    assert taken(outgoing) == []

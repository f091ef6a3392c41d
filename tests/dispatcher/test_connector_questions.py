"""What is asked of connectors over their streams: `services.dispatcher.connector_questions`."""

import asyncio
from typing import Any

import pytest

from cloudhub.v1.connector_pb2 import DrainRequest, DrainResponse, Link, ListLinksRequest, ListLinksResponse
from cloudhub.v1.link_pb2 import ConnectorAnswer, ConnectorQuestion
from services.dispatcher import connector_questions as module
from services.dispatcher.connector_questions import MAX_QUESTIONS, MAX_TEXT_CHARS, ConnectorQuestions
from services.dispatcher.connectors import ConnectorStream
from services.runtime.errors import Crowded, HubError, InvalidRequest, NotFound, Unavailable
from tests.support.dispatcher import Metrics

LINKS = ListLinksResponse(links=[Link(node_id="edge-1")], total=1)


class Connector:
    """The other end of a stream, which answers what it is told to."""

    def __init__(self, name: str = "connector-1", connector_id: str = "c1") -> None:
        self.stream = ConnectorStream(connector_id, name)

    async def asked(self) -> list[ConnectorQuestion]:
        """What has come since the last time."""
        return [one for batch in await self.stream.next_batches() for one in batch.questions]

    def answer(self, *answers: ConnectorAnswer) -> None:
        """In one batch."""
        self.stream.questions.answered(answers)


def questions_of(*connectors: Connector) -> tuple[ConnectorQuestions, Metrics]:
    metrics = Metrics()
    return ConnectorQuestions(lambda: [one.stream for one in connectors], metrics), metrics


def counted(metrics: Metrics, outcome: str) -> float:
    name = "cloudhub_dispatcher_connector_questions_total"
    return metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


async def test_answers_find_their_questions_in_whatever_order_they_come() -> None:
    connector = Connector()
    questions, metrics = questions_of(connector)
    calls = [
        asyncio.ensure_future(questions.links("c1", ListLinksRequest(page_token=token), None))
        for token in ("a", "b")
    ]
    asked = await connector.asked()
    while len(asked) < 2:
        asked += await connector.asked()
    assert [one.list_links.page_token for one in asked] == ["a", "b"]
    connector.answer(ConnectorAnswer(number=77, links=LINKS))
    for question in reversed(asked):
        token = question.list_links.page_token
        connector.answer(
            ConnectorAnswer(number=question.number, links=ListLinksResponse(next_page_token=f"after {token}"))
        )
    assert [(await call).next_page_token for call in calls] == ["after a", "after b"]
    assert len(connector.stream.questions) == 0
    assert counted(metrics, "answered") == 2


async def test_a_connector_is_found_by_name_or_id_and_one_that_is_not_there_is_told() -> None:
    both = Connector("twin", "c1"), Connector("twin", "c2"), Connector("connector-3", "c3")
    questions, _ = questions_of(*both)
    with pytest.raises(NotFound, match=r"no connector c9 .* there is: connector-3, twin") as absent:
        await questions.links("c9", ListLinksRequest(), None)
    assert absent.value.reason == "CONNECTOR_UNKNOWN"
    with pytest.raises(InvalidRequest, match="twin names 2 connectors"):
        await questions.drain("twin", DrainRequest(), None)
    call = asyncio.ensure_future(questions.links("c2", ListLinksRequest(), None))
    [question] = await both[1].asked()
    both[1].answer(ConnectorAnswer(number=question.number, links=LINKS))
    assert (await call) == LINKS


async def test_of_two_streams_of_one_connector_the_newer_one_is_asked() -> None:
    """The older one is broken, and nobody has noticed yet."""
    old, new = Connector(), Connector()
    questions, _ = questions_of(old, new)
    call = asyncio.ensure_future(questions.links("connector-1", ListLinksRequest(), None))
    [question] = await new.asked()
    new.answer(ConnectorAnswer(number=question.number, links=LINKS))
    assert (await call) == LINKS


async def test_so_many_questions_wait_for_one_connector_and_another_is_asked() -> None:
    slow, good = Connector("slow", "c1"), Connector("good", "c2")
    questions, metrics = questions_of(slow, good)
    waiting = [
        asyncio.ensure_future(questions.links("slow", ListLinksRequest(), None)) for _ in range(MAX_QUESTIONS)
    ]
    await slow.asked()
    with pytest.raises(Crowded, match="connector slow: 32 questions wait for it") as refused:
        await questions.links("slow", ListLinksRequest(), None)
    assert refused.value.reason == "TOO_MANY_QUESTIONS"
    call = asyncio.ensure_future(questions.links("good", ListLinksRequest(), None))
    [question] = await good.asked()
    good.answer(ConnectorAnswer(number=question.number, links=LINKS))
    assert (await call) == LINKS
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)
    assert len(slow.stream.questions) == 0
    assert (counted(metrics, "crowded"), counted(metrics, "answered")) == (1, 1)


async def test_a_silent_connector_and_one_whose_stream_ends_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain is not begun at one that says nothing: it would be waited for without end."""
    connector = Connector()
    questions, metrics = questions_of(connector)
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.01)
    for call in (
        questions.links("c1", ListLinksRequest(), None),
        questions.drain("c1", DrainRequest(), 60.0),
    ):
        with pytest.raises(Unavailable, match=r"connector-1 did not answer within 0\.01 s") as silent:
            await call
        assert silent.value.reason == "CONNECTOR_SILENT"
    assert [one.WhichOneof("what") for one in await connector.asked()] == ["list_links", "list_links"]
    monkeypatch.undo()
    lost = asyncio.ensure_future(questions.links("c1", ListLinksRequest(), None))
    await connector.asked()
    connector.stream.questions.lost()
    with pytest.raises(Unavailable, match="its stream has ended") as ended:
        await lost
    assert ended.value.reason == "CONNECTOR_LOST"
    assert (counted(metrics, "silent"), counted(metrics, "lost")) == (2, 1)


async def test_a_drain_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 5.0)
    connector = Connector()
    questions, _ = questions_of(connector)
    call = asyncio.ensure_future(questions.drain("c1", DrainRequest(links_per_second=7), 0.2))
    [question] = await connector.asked()
    connector.answer(ConnectorAnswer(number=question.number, links=LINKS))
    [question] = await connector.asked()
    assert question.drain.links_per_second == 7
    assert not (await asyncio.wait([call], timeout=0.3))[0]
    connector.answer(ConnectorAnswer(number=question.number, drained=DrainResponse(closed=9)))
    assert (await call).closed == 9


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (
            {"reason": "INVALID_FIELD", "field": "page_size", "detail": "page_size: too many"},
            InvalidRequest,
            "request.page_size: too many",
        ),
        ({"reason": "TOO_MANY_QUESTIONS", "detail": "later"}, Unavailable, "connector connector-1: later"),
    ],
)
async def test_what_the_connector_refuses_is_told_as_it_says(
    answer: dict[str, Any], kind: type[HubError], text: str
) -> None:
    connector = Connector()
    questions, metrics = questions_of(connector)
    call = asyncio.ensure_future(questions.links("c1", ListLinksRequest(), None))
    [question] = await connector.asked()
    connector.answer(ConnectorAnswer(number=question.number, **answer))
    with pytest.raises(kind) as refused:
        await call
    assert (refused.value.reason, refused.value.detail) == (answer["reason"], text)
    assert counted(metrics, "refused") == 1


@pytest.mark.parametrize("field", ["page_token", "node_id_prefix"])
async def test_texts_that_no_connector_can_use_are_not_sent(field: str) -> None:
    connector = Connector()
    questions, _ = questions_of(connector)
    wanted: dict[str, Any] = {field: "x" * (MAX_TEXT_CHARS + 1)}
    with pytest.raises(InvalidRequest, match=f"request.{field}: should have at most 512 characters"):
        await questions.links("c1", ListLinksRequest(**wanted), None)
    assert len(connector.stream.questions) == 0

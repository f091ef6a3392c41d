"""What operators want of a connector, asked over its stream: so they need to reach a dispatcher alone.

StreamQuestions      what is asked on one stream and not answered
ConnectorQuestions   finds the connector, and has its answer as the answer to a call
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from cloudhub.v1.connector_pb2 import DrainRequest, DrainResponse, ListLinksRequest, ListLinksResponse
from cloudhub.v1.link_pb2 import ConnectorAnswer, ConnectorQuestion
from services.dispatcher.metrics import DispatcherMetrics
from services.runtime.deadline import half_of
from services.runtime.errors import Crowded, HubError, InvalidRequest, NotFound, Unavailable
from services.runtime.names import shown

MAX_QUESTIONS = 32
"""Not answered, of one connector: half of what it answers at once."""
MAX_TEXT_CHARS = 512
"""Of a page token or the beginning of a node id."""
ANSWER_SECONDS = 5.0
"""For what is answered at once. A drain takes as long as it takes."""
_MAX_NAMED = 10


class StreamQuestions:
    """`say` puts a question on the stream."""

    def __init__(self, say: Callable[[ConnectorQuestion], None]) -> None:
        self._say = say
        self._number = 0
        self._waiting: dict[int, asyncio.Future[ConnectorAnswer]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, question: ConnectorQuestion) -> ConnectorAnswer:
        """The answer, however long it takes. Raises Crowded, or Unavailable when the stream ends."""
        if len(self._waiting) >= MAX_QUESTIONS:
            raise Crowded("TOO_MANY_QUESTIONS", f"{MAX_QUESTIONS} questions wait for it; ask again")
        self._number += 1
        number = question.number = self._number
        waiting: asyncio.Future[ConnectorAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        self._say(question)
        try:
            return await waiting
        finally:
            del self._waiting[number]

    def answered(self, answers: Iterable[ConnectorAnswer]) -> None:
        """Those that nobody waits for any more count for nothing."""
        for answer in answers:
            waiting = self._waiting.get(answer.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    def lost(self) -> None:
        """The stream has ended."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("CONNECTOR_LOST", "its stream has ended; ask again"))


class Attached(Protocol):
    """A connector's stream."""

    connector_id: str
    name: str
    questions: StreamQuestions


class ConnectorQuestions:
    """`streams` are those of the attached connectors, of two of one connector the newer one last."""

    def __init__(self, streams: Callable[[], Iterable[Attached]], metrics: DispatcherMetrics) -> None:
        self._streams = streams
        self._metrics = metrics

    async def links(
        self, connector: str, request: ListLinksRequest, seconds_left: float | None
    ) -> ListLinksResponse:
        """A page of its links. `connector` is its name or id; `seconds_left` until whoever asked gives up."""
        for field in ("page_token", "node_id_prefix"):
            if len(getattr(request, field)) > MAX_TEXT_CHARS:
                raise InvalidRequest(f"request.{field}", f"should have at most {MAX_TEXT_CHARS} characters")
        question, seconds = ConnectorQuestion(list_links=request), half_of(seconds_left, ANSWER_SECONDS)
        return (await self._answer(self._find(connector), question, seconds)).links

    async def drain(self, connector: str, request: DrainRequest, seconds_left: float | None) -> DrainResponse:
        """Returns when no link is left, or at its deadline; a caller who goes does not end it."""
        stream = self._find(connector)
        # One of a release that does not know questions says nothing, and is not to be waited for.
        known = ConnectorQuestion(list_links=ListLinksRequest(page_size=1))
        await self._answer(stream, known, half_of(seconds_left, ANSWER_SECONDS))
        return (await self._answer(stream, ConnectorQuestion(drain=request), None)).drained

    def _find(self, connector: str) -> Attached:
        streams = list(self._streams())
        found = {one.connector_id: one for one in streams if connector in (one.name, one.connector_id)}
        if len(found) > 1:
            raise InvalidRequest(
                "connector", f"{shown(connector)} names {len(found)} connectors: give an instance id"
            )
        if found:
            return next(iter(found.values()))
        names = sorted({one.name for one in streams})
        there = ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
        raise NotFound(
            "CONNECTOR_UNKNOWN",
            f"no connector {shown(connector)} is attached to this dispatcher; there is: {there or 'none'}",
        )

    async def _answer(
        self, stream: Attached, question: ConnectorQuestion, seconds: float | None
    ) -> ConnectorAnswer:
        """Within `seconds`; None: whenever it comes."""
        try:
            async with asyncio.timeout(seconds):
                answer = await stream.questions.ask(question)
        except TimeoutError:
            self._count("silent")
            raise Unavailable(
                "CONNECTOR_SILENT",
                f"connector {stream.name} did not answer within {seconds:.2g} s; one of an older release "
                "answers at its own address alone",
            ) from None
        except HubError as error:
            self._count("crowded" if isinstance(error, Crowded) else "lost")
            raise type(error)(error.reason, f"connector {stream.name}: {error.detail}") from None
        if answer.field:
            self._count("refused")
            detail = answer.detail.removeprefix(f"{answer.field}: ")
            raise InvalidRequest(f"request.{answer.field}", detail, answer.reason)
        if answer.reason:
            self._count("refused")
            raise Unavailable(answer.reason, f"connector {stream.name}: {answer.detail}")
        self._count("answered")
        return answer

    def _count(self, outcome: str) -> None:
        self._metrics.connector_questions.labels(outcome).inc()

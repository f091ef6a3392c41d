"""What operators want of this connector, asked by way of a dispatcher over its stream."""

import asyncio
from collections.abc import Iterable
from functools import partial

from cloudhub.v1 import link_pb2
from services.connector.outgoing import OutgoingBatches
from services.connector.servicer import ConnectorAdminServicer
from services.runtime.errors import InvalidRequest
from services.runtime.logs import get_log

_log = get_log("connector.questions")
MAX_QUESTIONS = 64
"""Under way, of all dispatchers together."""


class Questions:
    """Answers as ConnectorAdmin does. Who may ask, the dispatcher has checked: its stream is a service's.
    `close` ends what is under way."""

    def __init__(self, admin: ConnectorAdminServicer) -> None:
        self._admin = admin
        self._under_way: set[asyncio.Task[link_pb2.ConnectorAnswer]] = set()

    def __len__(self) -> int:
        return len(self._under_way)

    def asked(self, outgoing: OutgoingBatches, questions: Iterable[link_pb2.ConnectorQuestion]) -> None:
        """Answers go the way that the questions came; where that is lost, nobody hears them."""
        for question in questions:
            if len(self._under_way) >= MAX_QUESTIONS:
                refused = link_pb2.ConnectorAnswer(number=question.number, reason="TOO_MANY_QUESTIONS")
                refused.detail = f"it has {MAX_QUESTIONS} questions to answer; ask again"
                outgoing.answer(refused)
                continue
            task = asyncio.create_task(self._answer(question), name=f"question {question.number}")
            self._under_way.add(task)
            task.add_done_callback(partial(self._answered, outgoing, question.number))

    def close(self) -> None:
        """Nobody is answered any more."""
        for task in self._under_way:
            task.cancel()

    async def _answer(self, question: link_pb2.ConnectorQuestion) -> link_pb2.ConnectorAnswer:
        answer = link_pb2.ConnectorAnswer(number=question.number)
        what = question.WhichOneof("what")
        try:
            if what == "list_links":
                answer.links.CopyFrom(await self._admin.ListLinks(question.list_links, None))
            elif what == "drain":
                answer.drained.CopyFrom(await self._admin.Drain(question.drain, None))
            else:
                answer.reason, answer.detail = "QUESTION_UNKNOWN", "its release does not know the question"
        except InvalidRequest as error:
            answer.reason, answer.field, answer.detail = error.reason, error.field, error.detail
        return answer

    def _answered(
        self, outgoing: OutgoingBatches, number: int, task: asyncio.Task[link_pb2.ConnectorAnswer]
    ) -> None:
        self._under_way.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            outgoing.answer(task.result())
            return
        # A fault of ours: told there and here, and the connector goes on.
        _log.error("question.failed", error=repr(error))
        outgoing.answer(link_pb2.ConnectorAnswer(number=number, reason="INTERNAL", detail=repr(error)[:500]))

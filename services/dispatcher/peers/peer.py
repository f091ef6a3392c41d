"""One other dispatcher, as this one sees it: what is said to it, and the relay from it."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from cloudhub.v1.dispatcher_pb2 import NodeOutcome
from cloudhub.v1.peer_pb2 import (
    DirectMessage,
    HandedMessage,
    HintRequest,
    LookAtNodesRequest,
    LookAtNodesResponse,
    NodeHint,
    RelayRequest,
    SendDirectRequest,
)
from cloudhub.v1.peer_pb2_grpc import PeerServiceStub
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.dispatcher.outbox.records import ObjectRow
from services.dispatcher.peers.forwards import Forwards
from services.dispatcher.peers.hints import Hint, HintQueue
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.upstream.relays import RelayEnd, Relays
from services.runtime.backoff import Backoff
from services.runtime.batching import Batcher
from services.runtime.errors import Unavailable
from services.runtime.logs import get_log
from services.runtime.rpc import open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, Security

_log = get_log(__name__)

# A dispatcher that takes longer is as good as away: hints are found by its sweep, messages without
# acknowledgement are late anyway.
CALL_SECONDS = 2.0
SILENT_SECONDS = 2.0  # of a stream on which something comes every half second
RETRY = Backoff(0.1, 2.0)
MOST_HINTS_WAITING = 65_536
MOST_HINTS_PER_CALL = 4096
MOST_MESSAGES_PER_CALL = 1024
MOST_BYTES_PER_CALL = 4 * 1024 * 1024
MOST_CALLS_WAITING = 4096
# What a message has beside itself: the node's id, numbers.
_BESIDE_BYTES = 320

Messages = tuple[DirectMessage, ...]


def handed(row: ObjectRow) -> HandedMessage:
    """A row just accepted, for the dispatcher that has its node."""
    return HandedMessage(
        object_key=row.key,
        seq=row.seq,
        message=row.body or b"",
        version="" if row.version is None else str(row.version),
        size_bytes=row.size_bytes,
        priority=row.priority,
        is_delete=row.deleted,
        is_answer=row.is_answer,
        accepted_at_ms=row.accepted_at_ms,
        expires_at_ms=row.expires_at_ms,
    )


def why_silent(error: grpc.aio.AioRpcError, seconds: float) -> str:
    """Why another process of the hub did not answer within so long, for people."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {seconds:.2g} s"
    if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED):
        return f"its release does not know the question ({error.code().name})"
    return error.details() or error.code().name


def _go_on_unless_cancelled() -> None:
    """A cancellation that comes while a group fails is lost in the group's own error."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Publishes(Protocol):
    """Who has publishes forwarded, and hears what became of them."""

    def answered(self, way: Forwards[Any], outcomes: Sequence[NodeOutcome], not_here: Sequence[str]) -> None:
        """The next outcomes of a stream."""
        ...

    def returned(self, items: Sequence[Any]) -> None:
        """What a stream that ended leaves unanswered."""
        ...


class NoPublishes:
    """Nothing is forwarded."""

    def answered(self, way: Forwards[Any], outcomes: Sequence[NodeOutcome], not_here: Sequence[str]) -> None:
        """There is nothing to hear of."""

    def returned(self, items: Sequence[Any]) -> None:
        """There is nothing to take back."""


async def _is_written(call: Any, request: Message) -> bool:
    """Whether the call took it; False if it has ended, as whoever reads it hears too. grpc.aio raises the
    status of a call that ends while it writes, and InvalidStateError where it had ended before."""
    try:
        await call.write(request)
    except asyncio.InvalidStateError:
        return False
    return True


class Peer:
    """Made when a dispatcher comes, cancelled when it goes. `run` must be awaited by the owner."""

    def __init__(
        self,
        who: DispatcherPeer,
        own: DispatcherPeer,
        relays: Relays,
        metrics: PeerMetrics,
        not_here: Callable[[Sequence[str]], None],
        publishes: Publishes,
        security: Security = PLAINTEXT_LOOPBACK,
    ) -> None:
        self.who = who
        # The stream for publishes that it should write; None while there is none.
        self.forwards: Forwards[Any] | None = None
        self.is_attached = False
        self._own = own
        self._relays = relays
        self._metrics = metrics
        self._not_here = not_here
        self._publishes = publishes
        self._security = security
        # The stub's published type is that of a blocking channel.
        self._stub: Any = None
        self._hints = HintQueue(MOST_HINTS_WAITING)
        self._to_hint = asyncio.Event()
        self._direct: Batcher[Messages, Sequence[NodeOutcome]] = Batcher(
            self._send, most_waiting=MOST_CALLS_WAITING
        )

    async def run(self) -> None:
        """Talks to it until cancelled."""
        async with open_channel(self.who.address, self._security) as channel:
            self._stub = PeerServiceStub(channel)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tell_hints(), name="peer-hints")
                group.create_task(self._direct.run(), name="peer-direct")
                group.create_task(self._keep_relay(), name="peer-relay")
                group.create_task(self._keep_forwards(), name="peer-forwards")

    @property
    def hints_waiting(self) -> int:
        """Nodes whose changes it is told next."""
        return len(self._hints)

    # -- hints -------------------------------------------------------------------------------------

    def hint(self, node_id: str, hint: Hint) -> None:
        """Tells it soon that the node's rows were changed; at the bound its sweep has to find that."""
        if self._hints.add(node_id, hint):
            self._to_hint.set()
        else:
            self._metrics.hints.labels("dropped").inc()

    async def _tell_hints(self) -> None:
        failures = 0
        while True:
            await self._to_hint.wait()
            self._to_hint.clear()
            while hints := self._hints.take(MOST_HINTS_PER_CALL, MOST_BYTES_PER_CALL):
                request = HintRequest(
                    hints=[
                        NodeHint(node_id=node, last_seq=hint.last_seq, messages=map(handed, hint.rows))
                        for node, hint in hints
                    ]
                )
                try:
                    answer = await self._stub.Hint(request, timeout=CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    failures += 1
                    self._metrics.hints.labels("failed").inc(len(hints))
                    _log.debug("peer.hints_failed", peer=self.who.dispatcher_id, code=error.code().name)
                    await asyncio.sleep(RETRY.delay(failures, random.random()))
                else:
                    failures = 0
                    self._metrics.hints.labels("told").inc(len(hints))
                    if answer.not_here:
                        self._not_here(answer.not_here)

    # -- publishes that it should write ------------------------------------------------------------

    async def _keep_forwards(self) -> None:
        failures = 0
        while True:
            call = self._stub.Forward()
            try:
                await self._run_forwards(call)
            except* (grpc.aio.AioRpcError, TimeoutError) as errors:
                _log.debug("peer.forwards_ended", peer=self.who.dispatcher_id, errors=str(errors.exceptions))
            finally:
                call.cancel()
            failures = 1 if self.forwards is not None else failures + 1
            self.forwards = None
            _go_on_unless_cancelled()
            await asyncio.sleep(RETRY.delay(failures, random.random()))

    async def _run_forwards(self, call: Any) -> None:
        """One stream, until it ends or is silent."""
        forwards: Forwards[Any] = Forwards(self.who.dispatcher_id, self._publishes.returned)
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write_forwards(call, forwards), name="peer-forwards-writer")
                while True:
                    async with asyncio.timeout(SILENT_SECONDS):
                        response = await call.read()
                    if response is grpc.aio.EOF:
                        break
                    self.forwards = forwards
                    if response.outcomes:
                        self._publishes.answered(forwards, response.outcomes, response.not_here)
                writer.cancel()
        finally:
            forwards.close()

    @staticmethod
    async def _write_forwards(call: Any, forwards: Forwards[Any]) -> None:
        while True:
            await forwards.wake.wait()
            forwards.wake.clear()
            while (request := forwards.next_request()) is not None:
                if not await _is_written(call, request):
                    return

    # -- messages without acknowledgement ----------------------------------------------------------

    async def direct(self, messages: Sequence[DirectMessage]) -> Sequence[NodeOutcome]:
        """One outcome per message, in order. Raises Unavailable: then what became of them is unknown."""
        return await self._direct.call(tuple(messages))

    async def _send(self, calls: Sequence[Messages]) -> list[Sequence[NodeOutcome]]:
        outcomes: list[NodeOutcome] = []
        request, size_bytes = SendDirectRequest(), 0
        for message in (message for call in calls for message in call):
            size = message.size_bytes + _BESIDE_BYTES
            full = len(request.messages) >= MOST_MESSAGES_PER_CALL or size_bytes + size > MOST_BYTES_PER_CALL
            if full and request.messages:
                outcomes += await self._send_one(request)
                request, size_bytes = SendDirectRequest(), 0
            request.messages.append(message)
            size_bytes += size
        outcomes += await self._send_one(request)
        found = iter(outcomes)
        return [[next(found) for _ in call] for call in calls]

    async def _send_one(self, request: SendDirectRequest) -> Sequence[NodeOutcome]:
        name = self.who.name or self.who.dispatcher_id
        if self._stub is None:
            raise Unavailable("PEER_UNAVAILABLE", f"dispatcher {name} has only just come")
        try:
            outcomes: Sequence[NodeOutcome] = (
                await self._stub.SendDirect(request, timeout=CALL_SECONDS)
            ).outcomes
        except grpc.aio.AioRpcError as error:
            raise Unavailable(
                "PEER_UNAVAILABLE", f"the node's dispatcher {name} does not answer: {error.details()}"
            ) from error
        if len(outcomes) != len(request.messages):
            raise Unavailable("PEER_UNAVAILABLE", f"the node's dispatcher {name} left messages unanswered")
        return outcomes

    # -- what an operator asks ----------------------------------------------------------------------

    async def look(self, request: LookAtNodesRequest, seconds: float) -> LookAtNodesResponse:
        """What it knows of nodes, within so long. Raises Unavailable with the cause alone."""
        if self._stub is None:
            raise Unavailable("PEER_UNAVAILABLE", "it has only just come")
        try:
            answer: LookAtNodesResponse = await self._stub.LookAtNodes(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise Unavailable("PEER_UNAVAILABLE", why_silent(error, seconds)) from error
        return answer

    # -- the relay ---------------------------------------------------------------------------------

    async def _keep_relay(self) -> None:
        failures = 0
        while True:
            call = self._stub.Relay()
            detail = "it ended the relay"
            try:
                await self._run_relay(call)
            except* grpc.aio.AioRpcError as errors:
                detail = str([one.details() for one in errors.exceptions if isinstance(one, grpc.RpcError)])
            finally:
                call.cancel()
            failures = 1 if self.is_attached else failures + 1
            self._detached(detail)
            _go_on_unless_cancelled()
            await asyncio.sleep(RETRY.delay(failures, random.random()))

    async def _run_relay(self, call: Any) -> None:
        """One stream, until it ends; AioRpcErrors of reading and writing say why."""
        end = self._relays.open()
        try:
            async with asyncio.TaskGroup() as group:
                if not await _is_written(call, self._introduction(end)):
                    await call.read()  # it says why
                    return
                await call.initial_metadata()
                self._attached()
                writer = group.create_task(self._write(call, end), name="peer-relay-writer")
                while (response := await call.read()) is not grpc.aio.EOF:
                    self._relays.received(end, response)
                writer.cancel()
        finally:
            self._relays.close(end)

    async def _write(self, call: Any, end: RelayEnd) -> None:
        while True:
            await end.wake.wait()
            end.wake.clear()
            if not await _is_written(call, end.say(self._relays.wanted)):
                return

    def _introduction(self, end: RelayEnd) -> RelayRequest:
        request = end.say(self._relays.wanted)
        request.subscription.dispatcher_id = self._own.dispatcher_id
        request.subscription.name = self._own.name
        request.subscription.address = self._own.address
        return request

    def _attached(self) -> None:
        self.is_attached = True
        self._metrics.attached.inc()
        _log.info("peer.attached", peer=self.who.dispatcher_id, address=self.who.address)

    def gone(self) -> None:
        """It has no lease any more and was told nothing."""
        if self.is_attached:
            self.is_attached = False
            self._metrics.attached.dec()

    def _detached(self, detail: str) -> None:
        if self.is_attached:
            self.is_attached = False
            self._metrics.attached.dec()
            self._metrics.lost.inc()
            _log.warning("peer.lost", peer=self.who.dispatcher_id, address=self.who.address, detail=detail)

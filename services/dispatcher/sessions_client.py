"""The dispatcher's calls to the sessions service, with errors as HubErrors."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import grpc

from cloudhub.v1 import sessions_pb2 as pb
from cloudhub.v1.link_pb2 import REFUSAL_REASON_UNAVAILABLE, Refusal
from cloudhub.v1.sessions_pb2_grpc import SessionsServiceStub
from services.runtime.backoff import Backoff
from services.runtime.errors import ROW_DAMAGED, HubError, RowDamaged, Unavailable
from services.runtime.logs import get_log
from services.runtime.release import release
from services.runtime.rpc import NO_ANSWER, error_info

_log = get_log(__name__)
T = TypeVar("T")
V = TypeVar("V")


class OfNode(Protocol):
    """An entry of a batch."""

    node_id: str


E = TypeVar("E", bound=OfNode)

SESSIONS_SERVICE = "cloudhub.v1.SessionsService"
# Sessions refuses larger batches.
MOST_PER_CALL = 4096


class SessionsClient:
    """One dispatcher's view of sessions. Every call raises Unavailable when sessions does not answer."""

    def __init__(self, channel: grpc.aio.Channel, dispatcher_id: str, timeout_seconds: float) -> None:
        self._stub = SessionsServiceStub(channel)
        self._id = dispatcher_id
        self._timeout = timeout_seconds

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if error.code() in NO_ANSWER:
                raise Unavailable(
                    "SESSIONS_UNAVAILABLE", f"sessions does not answer: {error.details()}"
                ) from error
            reason, metadata = error_info(error)
            if reason == ROW_DAMAGED:
                raise RowDamaged(metadata.get("node_id", ""), str(error.details())) from error
            raise HubError(reason, f"sessions refused: {error.details()}") from error

    async def _each(
        self,
        entries: Sequence[E],
        call: Callable[[Sequence[E]], Awaitable[Sequence[V]]],
        instead: Callable[[RowDamaged], V],
    ) -> Sequence[V]:
        """A verdict per entry, in order. Sessions answers a batch as a whole: a node whose row is damaged
        gets its verdict from `instead`, and the others are asked for again."""
        verdicts: dict[str, V] = {}
        while True:
            sound = [entry for entry in entries if entry.node_id not in verdicts]
            try:
                found = iter(await call(sound) if sound else ())
            except RowDamaged as damage:
                node_id = damage.metadata["node_id"]
                if not any(entry.node_id == node_id for entry in sound):
                    raise
                _log.error("sessions.row_damaged", node=node_id, error=damage.detail)
                verdicts[node_id] = instead(damage)
                continue
            return [verdicts[e.node_id] if e.node_id in verdicts else next(found) for e in entries]

    async def open(self, sessions: Sequence[pb.OpenSession]) -> Sequence[pb.OpenVerdict]:
        """A verdict per session, in order."""

        async def call(sound: Sequence[pb.OpenSession]) -> Sequence[pb.OpenVerdict]:
            request = pb.OpenSessionsRequest(dispatcher_id=self._id, sessions=sound)
            return (await self._call(self._stub.OpenSessions(request, timeout=self._timeout))).verdicts

        def refused(damage: RowDamaged) -> pb.OpenVerdict:
            refusal = Refusal(reason=REFUSAL_REASON_UNAVAILABLE, detail=damage.detail)
            return pb.OpenVerdict(refusal=refusal)

        return await self._each(sessions, call, refused)

    async def activate(self, sessions: Sequence[pb.SessionRef]) -> Sequence[pb.ActivateVerdict]:
        """A verdict per session, in order."""

        async def call(sound: Sequence[pb.SessionRef]) -> Sequence[pb.ActivateVerdict]:
            request = pb.ActivateSessionsRequest(dispatcher_id=self._id, sessions=sound)
            return (await self._call(self._stub.ActivateSessions(request, timeout=self._timeout))).verdicts

        return await self._each(sessions, call, lambda _: pb.ActivateVerdict())

    async def close(self, sessions: Sequence[pb.CloseSession]) -> Sequence[pb.CloseVerdict]:
        """A verdict per session, in order."""

        async def call(sound: Sequence[pb.CloseSession]) -> Sequence[pb.CloseVerdict]:
            request = pb.CloseSessionsRequest(dispatcher_id=self._id, sessions=sound)
            return (await self._call(self._stub.CloseSessions(request, timeout=self._timeout))).verdicts

        return await self._each(sessions, call, lambda _: pb.CloseVerdict())

    async def transfer(self, sessions: Sequence[pb.TransferSession]) -> Sequence[pb.TransferVerdict]:
        """A verdict per session, in order."""

        async def call(sound: Sequence[pb.TransferSession]) -> Sequence[pb.TransferVerdict]:
            request = pb.TransferSessionsRequest(dispatcher_id=self._id, sessions=sound)
            return (await self._call(self._stub.TransferSessions(request, timeout=self._timeout))).verdicts

        return await self._each(sessions, call, lambda _: pb.TransferVerdict())

    async def locate(self, node_ids: Sequence[str]) -> dict[str, pb.Session]:
        """The live sessions among the nodes."""
        found: dict[str, pb.Session] = {}
        for start in range(0, len(node_ids), MOST_PER_CALL):
            request = pb.LocateNodesRequest(node_ids=node_ids[start : start + MOST_PER_CALL])
            answer = await self._call(self._stub.LocateNodes(request, timeout=self._timeout))
            found.update((session.node_id, session) for session in answer.sessions)
        return found

    async def delete_nodes(self, node_ids: Sequence[str]) -> list[int]:
        """Ends the nodes' sessions and forgets the nodes; the epoch of each newest session, 0 for none."""
        epochs: list[int] = []
        for start in range(0, len(node_ids), MOST_PER_CALL):
            request = pb.DeleteNodesRequest(node_ids=node_ids[start : start + MOST_PER_CALL])
            answer = await self._call(self._stub.DeleteNodes(request, timeout=self._timeout))
            epochs.extend(answer.epochs)
        return epochs

    async def held(self) -> dict[str, int]:
        """The live sessions that the registry says this dispatcher has: node and epoch."""
        found: dict[str, int] = {}
        after, more = "", True
        while more:
            request = pb.ListHeldRequest(dispatcher_id=self._id, after_node_id=after, page_size=MOST_PER_CALL)
            answer = await self._call(self._stub.ListHeld(request, timeout=self._timeout))
            found.update((ref.node_id, ref.epoch) for ref in answer.sessions)
            more = answer.more
            after = answer.sessions[-1].node_id if answer.sessions else ""
        return found

    async def renew(
        self,
        name: str,
        address: str,
        counter: int,
        sessions: int,
        connectors: Sequence[pb.ConnectorLoad] = (),
        *,
        draining: bool = False,
    ) -> pb.RenewLeaseResponse:
        """Renews this dispatcher's lease."""
        request = pb.RenewLeaseRequest(
            dispatcher_id=self._id,
            name=name,
            address=address,
            counter=counter,
            sessions=sessions,
            connectors=connectors,
            version=release(),
            draining=draining,
        )
        return await self._call(self._stub.RenewLease(request, timeout=self._timeout))

    async def release(self) -> None:
        """Ends this dispatcher's lease."""
        request = pb.ReleaseLeaseRequest(dispatcher_id=self._id)
        await self._call(self._stub.ReleaseLease(request, timeout=self._timeout))

    async def acknowledge_events(self, event_ids: Sequence[str]) -> None:
        """These lifecycle events were taken by subscribers."""
        request = pb.AcknowledgeEventsRequest(event_ids=event_ids)
        await self._call(self._stub.AcknowledgeEvents(request, timeout=self._timeout))

    async def watch(self, on_directive: Callable[[pb.EndDirective], None]) -> None:
        """Hands on what sessions asks, reconnecting until cancelled."""
        backoff, failures = Backoff(0.1, 2.0), 0
        while True:
            try:
                async for directives in self._stub.WatchDirectives(
                    pb.WatchDirectivesRequest(dispatcher_id=self._id)
                ):
                    failures = 0
                    for directive in directives.end:
                        on_directive(directive)
            except grpc.aio.AioRpcError as error:
                _log.debug("sessions.watch_lost", code=error.code().name, detail=error.details())
            failures += 1
            await asyncio.sleep(backoff.random_delay(failures))

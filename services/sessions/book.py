"""The working set of one transaction: the sessions, counters and events it touches. Pure.

A registry loads what a batch is about into a Book, lets it decide entry by entry, and writes what
changed in the same transaction. A later entry of a batch sees what the earlier ones did.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from services.sessions.fencing import NO_EPOCH, Epoch, grants, next_epoch
from services.sessions.lifecycle import EventKind, Input, Reason, Session, State, advance
from services.sessions.limits import Limits, Place, full_place, places
from services.sessions.records import (
    NOT_HANDED,
    ActivateResult,
    CloseResult,
    Deletion,
    Directive,
    Ending,
    Event,
    Eviction,
    EvictResult,
    Opening,
    OpenResult,
    Ref,
    Transfer,
    TransferResult,
)

# Of a node that nobody takes the events of; older ones are dropped, so that one that comes and goes all the
# time pushes out no other node's.
MAX_EVENTS_PER_NODE = 64


class Book:
    """See the module. `pending` are the unacknowledged events of the nodes; `renewals` is how often
    the calling dispatcher renewed. What is to be written stands in the public attributes."""

    def __init__(
        self,
        sessions: dict[str, Session],
        pending: Mapping[str, Iterable[Event]],
        counts: dict[Place, int],
        limits: Limits,
        *,
        make_id: Callable[[], str],
        renewals: int = NOT_HANDED,
    ) -> None:
        self.sessions = sessions
        self.pending = {node_id: list(events) for node_id, events in pending.items()}
        self.counts = counts
        self.limits = limits
        # Every state that came to be, in order.
        self.changes: list[Session] = []
        self.removed: set[str] = set()
        self.written: list[Event] = []
        # Events that were pending and are given up.
        self.dropped: list[Event] = []
        # Nodes whose earlier events now belong to the caller.
        self.moved: set[str] = set()
        self.directives: dict[Ref, Directive] = {}
        self.confirmed: list[Ref] = []
        self._make_id = make_id
        self._renewals = renewals

    def open(self, dispatcher_id: str, wanted: Opening, now_ms: int) -> OpenResult:
        """Opens a session under a new epoch and supersedes a live one, or refuses and changes nothing."""
        node_id = wanted.node_id
        former = self.sessions.get(node_id)
        live = former if former and former.live else None
        taken = places(wanted.project_id, wanted.connector_id)
        full = full_place(self.limits, self.counts, taken, _held(live))
        if full:
            return OpenResult(NO_EPOCH, full, self.limits.of(full))
        earlier = self._take_over(node_id, dispatcher_id)
        event = superseded = None
        if live:
            superseded, event = self._step(
                live, Input.SUPERSEDE, now_ms, Reason.SUPERSEDED, dispatcher_id, self._renewals
            )
            if live.dispatcher_id == dispatcher_id:
                self.confirmed.append(Ref(node_id, live.epoch))
            else:
                self._direct(live, Reason.SUPERSEDED, now_ms)
        opened = Session(
            node_id=node_id,
            project_id=wanted.project_id,
            epoch=next_epoch(self._last_epoch(node_id, former), now_ms),
            state=State.OPENING,
            reason=None,
            announced=False,
            connector_id=wanted.connector_id,
            dispatcher_id=dispatcher_id,
            link=wanted.link,
            transport=wanted.transport,
            peer_address=wanted.peer_address,
            opened_at_ms=now_ms,
            closed_at_ms=None,
        )
        self._count(taken, 1)
        self._store(opened)
        return OpenResult(opened.epoch, superseded=superseded, superseded_event=event, earlier_events=earlier)

    def activate(self, dispatcher_id: str, ref: Ref, now_ms: int) -> ActivateResult:
        """Turns the caller's OPENING session ACTIVE; one that is ACTIVE already stays so."""
        session = self._present(dispatcher_id, ref)
        if not session:
            return ActivateResult(False)
        _, event = self._step(
            session, Input.ACTIVATE, now_ms, Reason.EDGE_CLOSED, dispatcher_id, self._renewals
        )
        if self.sessions[ref.node_id].state is not State.ACTIVE:
            return ActivateResult(False)
        return ActivateResult(
            True, event or self._written_before(session, EventKind.CONNECTED, dispatcher_id)
        )

    def transfer(self, dispatcher_id: str, wanted: Transfer, now_ms: int) -> TransferResult:
        """Makes the link's session the caller's, under a new epoch, if it is still the node's newest.

        Whichever of its epochs the link shows: the answer to a former transfer may have been lost.
        """
        session = self.sessions.get(wanted.node_id)
        if not session:
            # Nothing is known of the node; it may open a session.
            return TransferResult(NO_EPOCH, Reason.DISPATCHER_LOST)
        if (session.connector_id, session.link) != (wanted.connector_id, wanted.link):
            return TransferResult(NO_EPOCH, Reason.SUPERSEDED)
        if wanted.epoch > session.epoch:
            return TransferResult(NO_EPOCH, Reason.PROTOCOL_ERROR)
        change = advance(session, Input.TRANSFER, now_ms, Reason.TRANSFERRED)
        if not change:
            # It has ended or is asked to; or it has no verdict yet, and this is not its link speaking.
            return TransferResult(NO_EPOCH, session.reason or Reason.DISPATCHER_LOST)
        if session.dispatcher_id == dispatcher_id:
            self.confirmed.append(Ref(session.node_id, session.epoch))
        else:
            self._direct(session, Reason.TRANSFERRED, now_ms)
        earlier = self._take_over(session.node_id, dispatcher_id)
        epoch = next_epoch(session.epoch, now_ms)
        self._store(replace(change.session, dispatcher_id=dispatcher_id, epoch=epoch))
        return TransferResult(epoch, earlier_events=earlier)

    def close(self, dispatcher_id: str, ending: Ending, now_ms: int) -> CloseResult:
        """Ends the caller's session unless it has ended. With TRANSFERRED the caller only confirms that it
        has let a session go."""
        ref = Ref(ending.node_id, ending.epoch)
        self.confirmed.append(ref)
        session = self._present(dispatcher_id, ref)
        if not session or ending.reason is Reason.TRANSFERRED:
            return CloseResult(False)
        ended, event = self._step(session, Input.CLOSE, now_ms, ending.reason, dispatcher_id, self._renewals)
        event = event or self._written_before(session, EventKind.DISCONNECTED, dispatcher_id)
        final = ended or session
        return CloseResult(ended is not None, event, final.reason)

    def evict(self, node_id: str, epoch: int, now_ms: int, *, revoked: bool = False) -> EvictResult:
        """Asks the holder of a session to end it, or ends it where nobody can be asked. `epoch` 0: any.
        `revoked`: since its node was; told of a session too that was to be evicted before."""
        session = self.sessions.get(node_id)
        if not session:
            return EvictResult(Eviction.UNKNOWN_NODE, None)
        if not session.live:
            return EvictResult(Eviction.NO_SESSION, session)
        if epoch and not grants(session.epoch, epoch):
            return EvictResult(Eviction.OTHER_EPOCH, session)
        marked = replace(session, revoked=session.revoked or revoked)
        after, _ = self._step(marked, Input.EVICT, now_ms, Reason.EVICTED, session.dispatcher_id, NOT_HANDED)
        if after:
            self._direct(session, Reason.EVICTED, now_ms)
        present = after or session
        if not after and marked != session and session.reason is Reason.EVICTED:
            present = marked
            self._store(present)
        return EvictResult(Eviction.ASKED if present.live else Eviction.CLOSED, present)

    def delete(self, node_id: str, now_ms: int) -> Deletion:
        """Ends the node's session and forgets the node: at once if it has no live session. The row of
        one that had stays, CLOSED, until every replica has seen the end (`Reaper`)."""
        session = self.sessions.get(node_id)
        if not session:
            return Deletion(False, NO_EPOCH)
        if not session.live:
            if session.reason is not Reason.NODE_DELETED:
                del self.sessions[node_id]
                self.removed.add(node_id)
            return Deletion(True, session.epoch)
        after, _ = self._step(
            session, Input.DELETE, now_ms, Reason.NODE_DELETED, session.dispatcher_id, NOT_HANDED
        )
        if after:
            self._direct(session, Reason.NODE_DELETED, now_ms)
        return Deletion(True, session.epoch)

    def lose(self, node_id: str, now_ms: int) -> None:
        """The lease of the session's dispatcher ran out."""
        session = self.sessions[node_id]
        self._step(session, Input.LOSE, now_ms, Reason.DISPATCHER_LOST, session.dispatcher_id, NOT_HANDED)

    def reclaim(self, node_id: str, now_ms: int) -> None:
        """The session's dispatcher is back."""
        session = self.sessions[node_id]
        self._step(session, Input.RECLAIM, now_ms, Reason.DISPATCHER_LOST, session.dispatcher_id, NOT_HANDED)

    def expire(self, node_id: str, epoch: int, now_ms: int) -> bool:
        """Ends a session in its dispatcher's stead; that one is told if it ever comes back."""
        session = self.sessions.get(node_id)
        if not session or not grants(session.epoch, epoch):
            return False
        after, _ = self._step(
            session, Input.CLOSE, now_ms, Reason.DISPATCHER_LOST, session.dispatcher_id, NOT_HANDED
        )
        if after:
            self._direct(session, after.reason or Reason.DISPATCHER_LOST, now_ms)
        return after is not None

    def _last_epoch(self, node_id: str, former: Session | None) -> Epoch:
        """The node's last epoch that is known; of a deleted node its events may still say."""
        told = [event.epoch for event in self.pending.get(node_id, ())]
        return max([former.epoch if former else NO_EPOCH, *told])

    def _present(self, dispatcher_id: str, ref: Ref) -> Session | None:
        session = self.sessions.get(ref.node_id)
        if not session or not grants(session.epoch, ref.epoch) or session.dispatcher_id != dispatcher_id:
            return None
        return session

    def _step(
        self, session: Session, step: Input, now_ms: int, reason: Reason, owner: str, handed: int
    ) -> tuple[Session | None, Event | None]:
        """Advances and notes what is to be written; (None, None) if nothing changes."""
        change = advance(session, step, now_ms, reason)
        if not change:
            return None, None
        after = change.session
        if session.live and not after.live:
            self._count(_held(session), -1)
        self._store(after)
        if change.event is None:
            return after, None
        event = Event(
            node_id=after.node_id,
            epoch=after.epoch,
            kind=change.event,
            event_id=self._make_id(),
            at_ms=now_ms,
            reason=after.reason if change.event is EventKind.DISCONNECTED else None,
            dispatcher_id=owner,
            handed=handed,
        )
        self.written.append(event)
        self._bound(self.pending.setdefault(after.node_id, []), event)
        return after, event

    def _bound(self, pending: list[Event], event: Event) -> None:
        """One more event of a node; its oldest ones go above the bound."""
        pending.append(event)
        while len(pending) > MAX_EVENTS_PER_NODE:
            oldest = min(pending, key=lambda one: (one.epoch, one.kind))
            pending.remove(oldest)
            self.dropped.append(oldest)
            if oldest in self.written:
                self.written.remove(oldest)

    def _take_over(self, node_id: str, dispatcher_id: str) -> tuple[Event, ...]:
        """The node's events that another dispatcher held, now the caller's; all its events move together."""
        events = self.pending.get(node_id, [])
        taken = tuple(
            replace(event, dispatcher_id=dispatcher_id, handed=self._renewals)
            for event in events
            if event.dispatcher_id != dispatcher_id
        )
        if taken:
            self.pending[node_id] = [
                *(event for event in events if event.dispatcher_id == dispatcher_id),
                *taken,
            ]
            self.moved.add(node_id)
        return taken

    def _written_before(self, session: Session, kind: EventKind, dispatcher_id: str) -> Event | None:
        for event in self.pending.get(session.node_id, ()):
            if (event.epoch, event.kind, event.dispatcher_id) == (session.epoch, kind, dispatcher_id):
                return event
        return None

    def _direct(self, session: Session, reason: Reason, now_ms: int) -> None:
        ref = Ref(session.node_id, session.epoch)
        self.directives[ref] = Directive(
            session.node_id, session.epoch, session.dispatcher_id, reason, now_ms
        )

    def _store(self, session: Session) -> None:
        self.sessions[session.node_id] = session
        self.removed.discard(session.node_id)
        self.changes.append(session)

    def _count(self, where: Collection[Place], step: int) -> None:
        for place in where:
            self.counts[place] = self.counts.get(place, 0) + step


def _held(session: Session | None) -> tuple[Place, ...]:
    return places(session.project_id, session.connector_id) if session else ()

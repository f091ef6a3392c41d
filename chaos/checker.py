"""The verdict on a chaos run: which invariants held. Pure."""

from collections import Counter
from dataclasses import dataclass, field

from chaos.enrolled import never_connected, unlisted, wrongly_used
from chaos.history import Count, Held, History, Outcome, Place
from chaos.messages import (
    lost,
    not_newest,
    refused_wrongly,
    stale_overwrites,
    uploads_lost,
    uploads_out_of_order,
)
from chaos.sessions import double_sessions, fenced_writes, limit_overruns, moves, not_one_session


@dataclass(slots=True)
class Verdict:
    """What the table shows. Each list has one sentence per breach."""

    accepted: int = 0
    acknowledged: int = 0
    """Accepted messages that their nodes have stored; the others were superseded, or wait."""
    superseded: int = 0
    waiting: int = 0
    uploads: int = 0
    """Uploads that were confirmed to their nodes."""
    certificates: int = 0
    """That nodes got by enrolment, the first and the next ones."""
    faults: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    """What hostile parties did that got through to the hub, by kind."""
    longest_recovery_seconds: float = 0.0
    recoveries: dict[str, float] = field(default_factory=dict)
    """The longest one by kind of fault, in seconds."""
    reconnects: Counter[str] = field(default_factory=Counter)
    """Links that were opened anew, by kind of fault."""
    moves: int = 0
    """Links that were seen to change their dispatcher without a new link."""
    lost: list[str] = field(default_factory=list)
    stale_overwrites: list[str] = field(default_factory=list)
    double_sessions: list[str] = field(default_factory=list)
    fenced_writes: list[str] = field(default_factory=list)
    """What the store took from sessions that were no longer their node's."""
    limit_overruns: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    """More processes' resources, sessions or rows at the end than there should be."""
    refused: list[str] = field(default_factory=list)
    """Messages that the hub should have taken."""
    out_of_order: list[str] = field(default_factory=list)
    """Uploads that were handed on in another order than their node's."""
    enrolment: list[str] = field(default_factory=list)
    """Tokens used too often or for nobody, certificates that are not on record, nodes that got no link."""
    hostile: list[str] = field(default_factory=list)
    """Answers that hostile parties got and should not have."""
    not_recovered: list[str] = field(default_factory=list)

    def breaches(self) -> dict[str, list[str]]:
        """All sentences, by the name of the invariant's line in the table."""
        return {
            "lost": self.lost,
            "stale overwrites": self.stale_overwrites,
            "double sessions": self.double_sessions,
            "fenced writes": self.fenced_writes,
            "limit overruns": self.limit_overruns,
            "left over": self.left_over,
            "wrongly refused": self.refused,
            "uploads out of order": self.out_of_order,
            "enrolment": self.enrolment,
            "hostile parties": self.hostile,
            "not recovered": self.not_recovered,
        }

    @property
    def holds(self) -> bool:
        """Whether every invariant held, and something was put to the test."""
        return self.accepted > 0 and not any(self.breaches().values())


def judge(history: History, node_ids: list[str]) -> Verdict:
    """Holds a run against the invariants; `node_ids` are the nodes that must be live at its end."""
    held = {
        Place(node_id, resource): Held(*one)
        for node_id, objects in history.held.items()
        for resource, one in objects.items()
    }
    accepted = [one for one in history.publishes if one.outcome is Outcome.ACCEPTED]
    applied = {(step.key, step.version, step.operation == "delete") for step in history.steps}
    acknowledged = sum((one.key, one.version, one.deletes) in applied for one in accepted)
    recoveries: dict[str, float] = {}
    reconnects: Counter[str] = Counter()
    for fault in history.faults:
        reconnects[fault.kind] += fault.reconnects
        if fault.recovered_at is not None:
            took = max(0.0, fault.recovered_at - fault.at)
            recoveries[fault.kind] = max(took, recoveries.get(fault.kind, 0.0))
    wrong_end = not_newest(history.publishes, held, history.waiting)
    return Verdict(
        accepted=len(accepted),
        acknowledged=acknowledged,
        superseded=len(accepted) - acknowledged,
        waiting=len(history.waiting),
        uploads=sum(len(set(numbers)) for numbers in history.uploads_confirmed.values()),
        certificates=len(history.certificates_held),
        faults=Counter(fault.kind for fault in history.faults),
        acts=Counter(act.kind for act in history.acts if act.through),
        longest_recovery_seconds=max(recoveries.values(), default=0.0),
        recoveries=recoveries,
        reconnects=reconnects,
        moves=moves(history.registry),
        lost=[
            *lost(history.publishes, history.steps, history.waiting),
            *wrong_end,
            *uploads_lost(history.uploads_confirmed, history.uploads_handed),
        ],
        stale_overwrites=stale_overwrites(history.steps),
        double_sessions=[
            *double_sessions(history.registry, history.changes, history.links),
            *not_one_session(node_ids, history.final_sessions, history.final_links),
        ],
        fenced_writes=fenced_writes(history.writes),
        limit_overruns=limit_overruns(history.registry, history.limit_total),
        left_over=[*_left_over(history.counts), *history.unclean],
        refused=refused_wrongly(history.publishes),
        out_of_order=uploads_out_of_order(history.uploads_handed),
        enrolment=[
            *wrongly_used(history.tokens, history.certificates_listed, history.certificates_held),
            *unlisted(history.certificates_listed, history.certificates_held),
            *never_connected(history.certificates_held, history.connected),
        ],
        hostile=[
            f"{act.kind} at {act.at:.1f} s: {sentence}" for act in history.acts for sentence in act.wrong
        ],
        not_recovered=_not_recovered(history),
    )


def _left_over(counts: list[Count]) -> list[str]:
    """Invariant 6."""
    return [f"{one.name}: {one.value}, at most {one.most}" for one in counts if one.value > one.most]


def _not_recovered(history: History) -> list[str]:
    """C35: after every fault the hub goes on by itself, and in the end nothing waits any more."""
    return [
        *(
            f"not recovered from {fault.kind} of {fault.target} at {fault.at:.1f} s"
            for fault in history.faults
            if fault.recovered_at is None
        ),
        *(
            f"{one.node_id}: version {one.version} of {one.uid} still waits at the end: {one.reason}"
            for one in history.waiting
        ),
    ]

"""Invariants 4 and 5: at most one live session per node, and never more of them than the limit. Pure.

Each check answers one sentence per breach; none means that the invariant held.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain

from chaos.history import LinkSeen, LinksSample, RegistrySample, SessionSeen, SessionWrite


def double_sessions(
    registry: Iterable[RegistrySample], changes: Iterable[SessionSeen], links: Iterable[LinksSample]
) -> list[str]:
    """Invariant 4, of what was seen during the run.

    Within one answer of the registry a node has one session. To whoever asks one replica, a node's epoch
    only grows. And an epoch belongs to one link and one dispatcher, whoever is asked and whenever.
    """
    return [
        *_twice(registry),
        *_backwards(registry),
        *_shared_epochs(registry, changes),
        *_shared_links(links),
    ]


def _twice(registry: Iterable[RegistrySample]) -> Iterable[str]:
    for sample in registry:
        for node_id, count in Counter(one.node_id for one in sample.sessions).items():
            if count > 1:
                yield f"{node_id}: {count} live sessions at {sample.at:.2f} s, says {sample.observer}"


def _backwards(registry: Iterable[RegistrySample]) -> Iterable[str]:
    last: dict[tuple[str, str], int] = {}
    for sample in registry:
        for one in sample.sessions:
            before = last.get((sample.observer, one.node_id), 0)
            if one.epoch < before:
                yield f"{one.node_id}: epoch {one.epoch} at {sample.at:.2f} s, after {before}"
            last[sample.observer, one.node_id] = max(before, one.epoch)


def _shared_epochs(registry: Iterable[RegistrySample], changes: Iterable[SessionSeen]) -> Iterable[str]:
    owners: dict[tuple[str, int], set[tuple[str, int, str]]] = {}
    listed = (one for sample in registry for one in sample.sessions)
    for one in chain(listed, changes):
        owner = (one.connector_id, one.link, one.dispatcher_id)
        owners.setdefault((one.node_id, one.epoch), set()).add(owner)
    for (node_id, epoch), several in owners.items():
        if len(several) > 1:
            yield f"{node_id}: epoch {epoch} is of {sorted(several)}"


def _shared_links(links: Iterable[LinksSample]) -> Iterable[str]:
    owners: dict[tuple[str, int], tuple[str, int]] = {}
    for sample in links:
        for one in sample.links:
            owner = (sample.connector, one.link)
            known = owners.setdefault((one.node_id, one.epoch), owner)
            if known != owner:
                yield f"{one.node_id}: links {known} and {owner} both have epoch {one.epoch}"


def fenced_writes(writes: Iterable[SessionWrite]) -> list[str]:
    """Invariant 4, of the store: once a session of a node has written under its epoch, no former one does.

    A new owner claims the node's rows before it writes, and the history is in the order of time.
    """
    newest: dict[str, SessionWrite] = {}
    breaches = []
    for write in writes:
        last = newest.setdefault(write.node_id, write)
        if write.epoch < last.epoch:
            breaches.append(
                f"{write.node_id}: {write.kind} of {write.message_id} was written under epoch {write.epoch}, "
                f"after {last.kind} of {last.message_id} under {last.epoch}"
            )
        else:
            newest[write.node_id] = write
    return breaches


def not_one_session(
    node_ids: Iterable[str], sessions: Iterable[SessionSeen], links: Iterable[LinkSeen]
) -> list[str]:
    """Invariant 4, when all is quiet: every node has one session, one link, and both are the same one."""
    of_node: dict[str, list[tuple[int, int]]] = {}
    for session in sessions:
        of_node.setdefault(session.node_id, []).append((session.epoch, session.link))
    links_of: dict[str, list[tuple[int, int]]] = {}
    for link in links:
        links_of.setdefault(link.node_id, []).append((link.epoch, link.link))
    breaches = []
    for node_id in dict.fromkeys((*node_ids, *of_node, *links_of)):
        there, connected = of_node.get(node_id, []), links_of.get(node_id, [])
        if len(there) != 1 or there != connected:
            breaches.append(
                f"{node_id}: the registry ends with (epoch, link) {there}, the connectors with {connected}"
            )
    return breaches


def limit_overruns(registry: Iterable[RegistrySample], limit_total: int) -> list[str]:
    """Invariant 5: no answer of the registry ever has more live sessions than the limit."""
    if not limit_total:
        return []
    return [
        f"{len(sample.sessions)} live sessions at {sample.at:.2f} s, the limit is {limit_total}"
        for sample in registry
        if len(sample.sessions) > limit_total
    ]


def moves(registry: Iterable[RegistrySample]) -> int:
    """How often a link was seen with another dispatcher than before."""
    seen: dict[tuple[str, str, int], set[tuple[int, str]]] = {}
    for sample in registry:
        for one in sample.sessions:
            link = (one.node_id, one.connector_id, one.link)
            seen.setdefault(link, set()).add((one.epoch, one.dispatcher_id))
    return sum(len(owners) - 1 for owners in seen.values())

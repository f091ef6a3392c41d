"""The processes of the hub as operators see them, from what they say of themselves. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from services.sessions.presence import Sign
from services.sessions.records import Lease, Replica


@dataclass(frozen=True, slots=True)
class Instance:
    """One process; `nodes` are the sessions that a dispatcher or the links that a connector holds."""

    service: str
    instance_id: str
    name: str
    address: str
    nodes: int
    silent_seconds: float
    version: str = ""
    draining: bool = False


def signs(leases: Iterable[Lease], replicas: Iterable[Replica]) -> list[Sign]:
    """How often each process has been heard of."""
    return [
        *(Sign(lease.dispatcher_id, lease.renewals) for lease in leases),
        *(Sign(replica.replica_id, replica.beats) for replica in replicas),
    ]


def instances(
    leases: Iterable[Lease], replicas: Iterable[Replica], silent_seconds: Callable[[Sign], float]
) -> list[Instance]:
    """Replicas of sessions, dispatchers whose lease is not lost, the connectors attached to those, and
    enrolment; a connector has been heard of when the last of its dispatchers was."""
    reported = [
        Instance(
            *(replica.service, replica.replica_id, replica.name, replica.address, 0),
            silent_seconds(Sign(replica.replica_id, replica.beats)),
            replica.version,
        )
        for replica in replicas
    ]
    shown = [one for one in reported if one.service == "sessions"]
    connectors: dict[str, Instance] = {}
    for lease in leases:
        if lease.lost:
            continue
        silence = silent_seconds(Sign(lease.dispatcher_id, lease.renewals))
        shown.append(
            Instance(
                *("dispatcher", lease.dispatcher_id, lease.name, lease.address, lease.sessions, silence),
                *(lease.version, lease.draining),
            )
        )
        for load in lease.connectors:
            known = connectors.get(load.connector_id)
            connectors[load.connector_id] = (
                Instance(
                    *("connector", load.connector_id, load.name, load.address, load.links, silence),
                    *(load.version, load.draining),
                )
                if known is None
                else replace(
                    known,
                    nodes=known.nodes + load.links,
                    silent_seconds=min(known.silent_seconds, silence),
                    # A dispatcher that has yet to renew its lease may not have said so.
                    draining=known.draining or load.draining,
                )
            )
    others = [one for one in reported if one.service != "sessions"]
    return [*shown, *(connectors[connector_id] for connector_id in sorted(connectors)), *others]

"""What the processes of a hub hold, read by their GetResources, and what is left over of it later."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloudhub.v1.connector_pb2_grpc import ConnectorAdminStub
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub
from cloudhub.v1.resources_pb2 import GetResourcesRequest
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from services.runtime.rpc import open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, Security

_ADMIN = {"connector": ConnectorAdminStub, "dispatcher": DispatcherAdminStub, "sessions": SessionsAdminStub}
READ_SECONDS = 10.0
# What a process remembers up to a bound, whether it is busy or not.
MEMORIES = frozenset({"locations", "events_remembered", "uploads_remembered"})
POOLED_THREADS = 8
"""So many more than before are no leak. gRPC's event engine adds a thread, at most one a second, whenever all
that it has are at work (on a busy machine: wait for a processor), and lets it go after 20 s without any,
which do not come while somebody asks every moment what there is."""
# The gRPC server has one for each of its methods, which waits for the next call; for an instant it has none.
_WAITS_FOR_CALL = "AioServer._request"


@dataclass(frozen=True, slots=True)
class Resources:
    """One process at one instant. `counts` are those that must be the same whenever the hub is as quiet:
    tasks, threads, file descriptors and all that resources.proto counts of the service. `remembered` are the
    entries of its MEMORIES together."""

    counts: Mapping[str, int]
    remembered: int
    tasks_by_name: Mapping[str, int]
    resident_bytes: int
    memory_blocks: int

    def left_over(self, before: "Resources") -> dict[str, tuple[int, int]]:
        """What there is more of than before: (before, now), tasks told by what they run."""
        now = {**self.counts, **{f"task {name}": count for name, count in self.tasks_by_name.items()}}
        then = {**before.counts, **{f"task {name}": count for name, count in before.tasks_by_name.items()}}
        return {name: (then.get(name, 0), count) for name, count in now.items() if count > then.get(name, 0)}


def resources_of(answer: Any) -> Resources:
    """An answer of GetResources, of any service."""
    process = answer.process
    counts = {
        field.name: int(getattr(answer, field.name))
        for field in answer.DESCRIPTOR.fields
        if field.name not in ("process", *MEMORIES)
    }
    remembered = sum(
        int(getattr(answer, field.name)) for field in answer.DESCRIPTOR.fields if field.name in MEMORIES
    )
    tasks = {
        name: count for name, count in process.tasks_by_name.items() if not name.startswith(_WAITS_FOR_CALL)
    }
    counts |= {
        "tasks": sum(tasks.values()),
        "threads": process.threads,
        "file_descriptors": process.file_descriptors,
    }
    return Resources(counts, remembered, tasks, process.resident_bytes, process.memory_blocks)


async def read_resources(
    service: str, address: str, security: Security = PLAINTEXT_LOOPBACK, *, collect_garbage: bool = True
) -> Resources:
    """What the process of a service ("connector", "dispatcher" or "sessions") at HOST:PORT holds. Raises
    grpc.aio.AioRpcError if it does not answer."""
    async with open_channel(address, security) as channel:
        request = GetResourcesRequest(collect_garbage=collect_garbage)
        return resources_of(await _ADMIN[service](channel).GetResources(request, timeout=READ_SECONDS))

"""Services whose database takes no writes: a full disk, files that are gone."""

import asyncio
import resource
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloudhub.v1 import sessions_pb2, sessions_pb2_grpc
from cloudhub.v1.dispatcher_pb2 import OUTCOME_ACCEPTED, OUTCOME_UNAVAILABLE, NodeOutcome
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from services.runtime.rpc import open_channel
from tests.support.hub import request
from tests.support.processes import HubProcesses

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Well above a probe's interval, on a machine that does other things.
SECONDS = 30.0

Break = Callable[[HubProcesses, str], None]


@asynccontextmanager
async def stateful_services(folder: Path) -> AsyncIterator[HubProcesses]:
    """Sessions and a dispatcher as processes, both serving."""
    async with HubProcesses(folder, services=("sessions", "dispatcher")) as hub:
        for service in ("sessions", "dispatcher"):
            await until(hub, service, SERVING)
        yield hub


async def until(hub: HubProcesses, service: str, status: int) -> None:
    """Returns when the health of the service as a whole is that; nothing is published or opened meanwhile."""
    async with open_channel(hub.address(service)) as channel, asyncio.timeout(SECONDS):
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack Watch
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
            if answer.status == status:
                return


async def published(hub: HubProcesses, version: int) -> NodeOutcome:
    """What came of one publish."""
    async with open_channel(hub.address("dispatcher")) as channel:
        stub: Any = DispatcherServiceStub(channel)
        asked = request("edge-1", version=version, message_id=f"m{version}")
        answer = await stub.Publish(asked, timeout=SECONDS, wait_for_ready=True)
        outcome: NodeOutcome = answer.outcomes[0]
        return outcome


async def opened(hub: HubProcesses, node_id: str) -> None:
    """Opens a session."""
    entry = sessions_pb2.OpenSession(
        node_id=node_id, project_id="p1", connector_id="c1", link=1, transport="websocket"
    )
    async with open_channel(hub.address("sessions")) as channel:
        stub: Any = sessions_pb2_grpc.SessionsServiceStub(channel)
        await stub.OpenSessions(
            sessions_pb2.OpenSessionsRequest(dispatcher_id="d1", sessions=[entry]), timeout=SECONDS
        )


def fill_disk(hub: HubProcesses, service: str) -> None:
    """No file of the process can grow, as on a disk that is full."""
    resource.prlimit(hub.pid(service), resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def make_room(hub: HubProcesses, service: str) -> None:
    resource.prlimit(hub.pid(service), resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def take_files(hub: HubProcesses, service: str) -> None:
    """As `rm` does, for whoever looks by name."""
    (hub.folder / "taken").mkdir()
    for path in hub.folder.glob(f"{service}.db*"):
        path.rename(hub.folder / "taken" / path.name)


def put_files_back(hub: HubProcesses, service: str) -> None:
    for path in (hub.folder / "taken").iterdir():
        path.rename(hub.folder / path.name)


WAYS = pytest.mark.parametrize(
    ("break_it", "mend_it", "said"),
    [(fill_disk, make_room, "the database refused"), (take_files, put_files_back, "dispatcher.db cannot be")],
    ids=["full disk", "files gone"],
)


@WAYS
async def test_a_dispatcher_serves_only_while_what_it_accepts_stays(
    tmp_path: Path, break_it: Break, mend_it: Break, said: str
) -> None:
    """C52: failed commits clear its health, and without anybody publishing it finds out when it is well."""
    async with stateful_services(tmp_path) as hub:
        assert (await published(hub, 1)).outcome == OUTCOME_ACCEPTED
        break_it(hub, "dispatcher")
        refused = await published(hub, 2)
        assert (refused.outcome, refused.reason) == (OUTCOME_UNAVAILABLE, "STORE_UNAVAILABLE")
        assert said in refused.detail
        await until(hub, "dispatcher", NOT_SERVING)
        mend_it(hub, "dispatcher")
        await until(hub, "dispatcher", SERVING)
        assert (await published(hub, 3)).outcome == OUTCOME_ACCEPTED
        await hub.kill("dispatcher")
        await hub.start("dispatcher")
        assert (await published(hub, 3)).duplicate_of == "m3", "it was accepted, so it is there"


@WAYS
async def test_sessions_serves_only_while_what_it_admits_stays(
    tmp_path: Path, break_it: Break, mend_it: Break, said: str
) -> None:
    """C52: and whoever wants a session is told at once."""
    async with stateful_services(tmp_path) as hub:
        await opened(hub, "edge-1")
        break_it(hub, "sessions")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await opened(hub, "edge-2")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert said.replace("dispatcher", "sessions") in str(refused.value.details())
        await until(hub, "sessions", NOT_SERVING)
        mend_it(hub, "sessions")
        await until(hub, "sessions", SERVING)
        await opened(hub, "edge-2")


async def test_a_disk_that_fills_up_is_noticed_before_anybody_publishes(tmp_path: Path) -> None:
    """C52."""
    async with stateful_services(tmp_path) as hub:
        for service in ("dispatcher", "sessions"):
            fill_disk(hub, service)
            await until(hub, service, NOT_SERVING)


async def test_a_second_dispatcher_is_refused_also_without_the_lock_file(tmp_path: Path) -> None:
    async with stateful_services(tmp_path) as hub:
        (tmp_path / "dispatcher.db.lock").unlink()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.dispatcher", *hub.flags_of("dispatcher")),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(process.communicate(), SECONDS)
        assert process.returncode == 1
        assert b"is in use by another process" in said
        assert (await published(hub, 1)).outcome == OUTCOME_ACCEPTED

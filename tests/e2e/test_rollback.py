"""A release beside the one before it on one database, and back: what docs/deployment.md says of upgrades.

The one before is that of FORMER, out of the history of this repository: the last commit whose schema of the
dispatcher is older than today's by a migration that changes a table which every publish writes.
"""

import asyncio
import io
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from services.dispatcher.outbox.schema import SCHEMA
from services.runtime.migrations import head
from services.runtime.rpc import open_channel
from tests.e2e.load import object_request
from tests.support.postgres import Databases
from tests.support.processes import HOST, ROOT, clean_environment, free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FORMER = "8d99e478584043b6450984579891bf158265ad88"
FORMER_VERSION = "v8"  # by its number of migrations
NODE = "edge-1"
START_SECONDS = 120.0


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before."""
    packed = subprocess.run(
        ["git", "archive", FORMER, "services", "cloudhub"], cwd=ROOT, capture_output=True, check=False
    )
    if packed.returncode:
        # An archive of the sources and a shallow clone have no release before this one.
        pytest.skip(f"the history here has no {FORMER} (git fetch --unshallow): {packed.stderr.decode()}")
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def command(service: str, *words: str) -> tuple[str, ...]:
    return sys.executable, "-m", f"services.{service}", *words


async def ran(tree: Path, service: str, *words: str) -> tuple[int, str]:
    """Exit status and errors of what ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *command(service, *words),
        cwd=tree,
        env=clean_environment() | {"PYTHONPATH": str(tree)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(START_SECONDS):
        _, errors = await process.communicate()
    return process.returncode or 0, errors.decode()


@asynccontextmanager
async def serving(tree: Path, log: Path, service: str, *words: str) -> AsyncIterator[None]:
    """The service of that release, within the block."""
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *command(service, *words, "--metrics-listen", f"{HOST}:0", "--grpc-insecure-loopback", "true"),
            cwd=tree,
            env=clean_environment() | {"PYTHONPATH": str(tree)},
            stdout=sink,
            stderr=sink,
        )
    try:
        yield
        assert process.returncode is None, log.read_text()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def published(address: str, version: int, log: Path) -> None:
    """Accepted, as soon as the dispatcher there takes anything."""
    outcome = None
    async with open_channel(address) as channel:
        cloud: Any = DispatcherServiceStub(channel)
        try:
            async with asyncio.timeout(START_SECONDS):
                while outcome is None or outcome.outcome == pb.OUTCOME_UNAVAILABLE:
                    answer = await cloud.Publish(
                        object_request([NODE], f"default/configmap/c{version}", f"u{version}", version),
                        wait_for_ready=True,
                    )
                    (outcome,) = answer.outcomes
        except TimeoutError:
            raise AssertionError(f"{outcome}: {log.read_text()[-2000:]}") from None
    assert outcome.outcome == pb.OUTCOME_ACCEPTED, outcome


async def pending(address: str) -> int:
    """Of the node, as the dispatcher there counts."""
    async with open_channel(address) as channel:
        admin: Any = DispatcherAdminStub(channel)
        (node,) = (await admin.ListNodes(pb.ListNodesRequest(page_size=10), timeout=20)).nodes
        assert node.node_id == NODE
        return int(node.pending)


async def test_the_release_before_goes_on_beside_this_one_and_does_not_start_again(
    former: Path, tmp_path: Path, databases: Databases
) -> None:
    """Its processes work on through the migration, what either accepts is everybody's, and a start after it
    is refused with the sentence that the page shows."""
    url = databases.empty()
    sessions, first, second = (f"{HOST}:{port}" for port in free_ports(3))
    database = ("--database", url)
    for service in ("sessions", "dispatcher"):
        status, told = await ran(former, service, "migrate", *database)
        assert status == 0, told
    flags = ("--sessions", sessions, *database)
    logs = {name: tmp_path / f"{name}.log" for name in ("sessions", "first", "second")}
    async with serving(former, logs["sessions"], "sessions", "--listen", sessions, *database):
        async with serving(former, logs["first"], "dispatcher", "--listen", first, *flags):
            await published(first, 1, logs["first"])
            for service in ("sessions", "dispatcher"):
                status, told = await ran(ROOT, service, "migrate", *database)
                assert status == 0, told
            await published(first, 2, logs["first"])
            async with serving(ROOT, logs["second"], "dispatcher", "--listen", second, *flags):
                await published(second, 3, logs["second"])
                await published(first, 4, logs["first"])
                assert await pending(first) == await pending(second) == 4
        status, told = await ran(
            former, "dispatcher", "--listen", first, *flags, "--grpc-insecure-loopback", "true"
        )
    assert status == 1
    assert (
        f"holds version {head(SCHEMA)} of the schema of dispatcher, which this release ({FORMER_VERSION}) "
        "does not know; use the release that made it, or a newer one"
    ) in told

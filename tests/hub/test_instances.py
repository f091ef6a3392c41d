"""The processes of a hub as its operators see them."""

import asyncio
from pathlib import Path

from cloudhub.v1 import connector_pb2
from cloudhub.v1 import sessions_pb2 as pb
from services.runtime.release import release
from tests.support.certs import TestAuthority
from tests.support.enrolment import running_enrolment
from tests.support.hub import RunningHub, running_hub


async def until_listed(hub: RunningHub, wanted: set[tuple[str, str, bool]]) -> None:
    """Returns when service, release and draining of every process are those."""
    found: set[tuple[str, str, bool]] = set()
    try:
        async with asyncio.timeout(20):
            while found != wanted:
                answer = await hub.sessions_admin.ListInstances(pb.ListInstancesRequest(), timeout=10)
                found = {(one.service, one.version, one.draining) for one in answer.instances}
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(found) from None


async def test_every_process_is_listed_with_its_release_and_one_that_drains_at_once(tmp_path: Path) -> None:
    """The lease is a minute: nobody waits for the next renewal. Enrolment that stops is gone at once."""
    authority = TestAuthority(tmp_path / "ca")
    changes = {"enrolment_ca": authority.certificate, "lease_seconds": 60.0}
    own = release()
    others = {("sessions", own, False), ("dispatcher", own, False)}
    slow = {"lease_seconds": 60.0}
    async with running_hub(tmp_path, authority, sessions=changes, dispatcher=slow) as hub:
        async with running_enrolment(hub, authority):
            enrolment = {("enrolment", own, False)}
            await hub.connector_admin.Drain(connector_pb2.DrainRequest(), timeout=10)
            await until_listed(hub, {*others, *enrolment, ("connector", own, True)})
        await until_listed(hub, {*others, ("connector", own, True)})

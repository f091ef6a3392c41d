"""Two of each service: what one of them is told about a node, all of them obey."""

import asyncio
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from cloudhub.v1 import enrolment_pb2 as pb
from cloudhub.v1.enrolment_pb2_grpc import EnrolmentAdminStub
from services.dispatcher.outbox import schema as outbox_schema
from services.sessions import schema as sessions_schema
from tests.support.certs import TestAuthority
from tests.support.enrolment import EnrolledHub, running_enrolment
from tests.support.hub import running_hub
from tests.support.postgres import Databases


async def test_a_revocation_through_any_replica_cuts_links_at_all_of_them(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """And a token of one use lets one node in, whichever replica of enrolment is asked."""
    urls = {
        "sessions": await databases.fresh(sessions_schema.SCHEMA),
        "dispatcher": await databases.fresh(outbox_schema.SCHEMA),
    }
    async with (
        running_hub(
            *(tmp_path, authority),
            sessions={"enrolment_ca": authority.certificate},
            dispatchers=2,
            connectors=2,
            registries=2,
            databases=urls,
        ) as hub,
        running_enrolment(hub, authority) as one,
        running_enrolment(hub, authority) as other,
    ):
        both = [EnrolledHub(hub, app, authority, tmp_path) for app in (one, other)]
        token = await both[0].token()
        answers = await asyncio.gather(
            *(both[number % 2].edge_crt(token, f"edge-{number}") for number in range(6))
        )
        assert [answer.status for answer in answers].count(200) == 1

        places = ("connector", "connector-2")
        for number, (through, at) in enumerate(
            (through, at) for through in ("sessions", "sessions-2") for at in places
        ):
            node = f"edge-{number}"
            edge = await hub.open_edge(node, at=at)
            admin = EnrolmentAdminStub(await hub.channel(through))
            answer = await admin.RevokeNode(pb.RevokeNodeRequest(node_id=node), timeout=10)
            assert answer.was_connected
            await edge.closed(5)
            for place in places:
                with pytest.raises(InvalidStatus) as refused:
                    await hub.open_edge(node, at=place)
                assert refused.value.response.status_code == 403

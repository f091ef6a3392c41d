"""Values that a database refuses: whoever sent one is told, and nobody else notices."""

import sqlite3
from pathlib import Path

from cloudhub.v1 import dispatcher_pb2 as pb
from tests.support.certs import TestAuthority
from tests.support.hub import request, running_hub


async def test_a_refused_value_is_rejected_and_others_of_its_frame_are_accepted(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C44: it is told as what it is, not as a database that is away, which would be asked again for ever."""
    async with running_hub(tmp_path, authority) as hub, hub.edge("edge-2") as other:
        connection = sqlite3.connect(hub.folder / "dispatcher.db", isolation_level=None, timeout=5)
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON delivery WHEN NEW.object_key = 'uid-bad' "
            "BEGIN SELECT RAISE(ABORT, 'index row size 3008 exceeds maximum'); END"
        )
        connection.close()
        call = hub.cloud.PublishStream()
        requests = [request("edge-1", name="bad"), *(request("edge-2", name=f"cm{n}") for n in range(20))]
        await call.write(pb.PublishStreamRequest(requests=requests))
        await call.done_writing()
        bad, *good = [response.outcomes[0] for response in (await call.read()).responses]
        assert (bad.outcome, bad.reason, bad.field) == (pb.OUTCOME_REJECTED, "STORE_REFUSED", "message")
        assert "index row size 3008" in bad.detail
        assert {outcome.outcome for outcome in good} == {pb.OUTCOME_ACCEPTED}
        got = [message["route"]["resource"] for message in await other.take(20)]
        assert got == [f"default/configmap/cm{n}" for n in range(20)]

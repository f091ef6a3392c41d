"""The command line at a hub with several dispatchers."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ctl.faults import CtlFault
from ctl.hub import Access, Hub
from tests.support.certs import TestAuthority
from tests.support.hub import request
from tests.support.postgres import Databases
from tests.support.processes import HOST, ROOT, clean_environment
from tests.support.replicas import Replicas, running_replicas


def access(hub: Replicas) -> Access:
    """To both dispatchers."""
    dispatchers = ",".join(f"{HOST}:{replica.app.port}" for replica in hub.all)
    return Access(dispatchers, f"{HOST}:{hub.sessions.app.port}", f"{HOST}:1")


async def test_the_dispatcher_that_holds_a_session_is_asked_about_its_node(
    tmp_path: Path, databases: Databases, authority: TestAuthority, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        running_replicas(tmp_path, databases, authority) as hub,
        hub[0].edge("edge-a"),
        hub[1].edge("edge-b"),
        Hub(access(hub)) as asked,
    ):
        await hub[0].accept(request("edge-c"))

        of = [await asked.dispatcher_of(node) for node in ("edge-a", "edge-b", "edge-c", "edge-d")]

        assert [asked.dispatchers.index(one) for one in of] == [0, 1, 0, 0]
        for node in ("edge-a", "edge-d"):
            # A dead one among several costs a warning, not the answer.
            partly = replace(access(hub), dispatcher=f"{HOST}:1,{access(hub).dispatcher}")
            async with Hub(partly) as some:
                there = await some.dispatcher_of(node)
                assert there.address == asked.dispatchers[0].address
        told = capsys.readouterr().err
        assert told.count(f"dispatcher at {HOST}:1 cannot be reached") == 2
        async with Hub(replace(access(hub), dispatcher=f"{HOST}:1,{HOST}:2")) as none:
            with pytest.raises(CtlFault, match="cannot be reached"):
                await none.any_dispatcher()
        wanted = access(hub)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ctl", "--dispatcher", wanted.dispatcher),
            *("--sessions", wanted.sessions, "nodes", "-o", "json"),
            cwd=ROOT,
            env=clean_environment(),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        nodes = json.loads(out)
        assert [(one["node_id"], one["state"], one["connected"]) for one in nodes] == [
            ("edge-a", "active", True),
            ("edge-b", "active", True),
            ("edge-c", "away", False),
        ]

"""The command line at a hub with several dispatchers."""

import asyncio
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.connector_pb2 import DrainRequest
from cloudhub.v1.sessions_pb2 import DispatcherPeer
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


def only_first(hub: Replicas) -> Access:
    """To the first dispatcher alone; nothing else is where it says."""
    return Access(f"{HOST}:{hub[0].app.port}", f"{HOST}:1", f"{HOST}:1")


async def test_nodes_are_told_whole_by_way_of_one_dispatcher(
    tmp_path: Path, databases: Databases, authority: TestAuthority, capsys: pytest.CaptureFixture[str]
) -> None:
    """C43: the other one is asked by the first, and by nobody else; a dead one is named beside the answer."""
    async with (
        running_replicas(tmp_path, databases, authority) as hub,
        hub[0].edge("edge-a"),
        hub[1].edge("edge-b") as edge,
        Hub(only_first(hub)) as asked,
    ):
        await hub[0].accept(request("edge-b", "edge-c"))
        await edge.next()
        nowhere = DispatcherPeer(dispatcher_id="d-gone", name="gone", address=f"{HOST}:1")
        own = [replica.app.peers.own for replica in hub.all]
        for listed in (own, [*own, nowhere]):
            hub[0].app.peers.seen(listed)
            found = [(one.node_id, one.connected, one.in_flight) for one in await asked.nodes()]
            assert found == [("edge-a", True, 0), ("edge-b", True, 1), ("edge-c", False, 0)]
            told = "dispatcher gone at 127.0.0.1:1 did not answer the dispatcher at"
            assert (told in capsys.readouterr().err) == (nowhere in listed)
        assert hub[0].metric("peers_looks_total", outcome="silent") == 1
        assert hub[0].metric("peers_looks_total", outcome="answered") == 2
        assert hub[1].metric("peers_looks_total", outcome="answered") == 0


async def test_what_is_in_flight_is_told_by_way_of_one_dispatcher(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C43: `inspect`, `explain` and `object`, as a user types them; the second dispatcher is not known to the
    command. A dead one is named beside the answer."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge("edge-b") as edge:
        await hub[0].accept(request("edge-b"))
        await edge.next()  # and does not acknowledge it
        nowhere = DispatcherPeer(dispatcher_id="d-gone", name="gone", address=f"{HOST}:1")
        own = [replica.app.peers.own for replica in hub.all]
        for listed in (own, [*own, nowhere]):

            async def asked(*command: str, listed: Sequence[DispatcherPeer] = listed) -> tuple[Any, str]:
                hub[0].app.peers.seen(listed)  # until sessions says again who is there
                return await said(hub, *command)

            inspected, warned = await asked("inspect", "edge-b")
            assert [one["state"] for one in inspected["objects"]] == ["DELIVERY_STATE_IN_FLIGHT"]
            assert (inspected["node"]["connected"], inspected["node"]["in_flight"]) == (True, 1)
            assert ("dispatcher gone at 127.0.0.1:1 did not answer" in warned) == (nowhere in listed)
            explained, _ = await asked("explain", "edge-b", "uid-cm1")
            assert (explained["state"], explained["everywhere"]) == ("DELIVERY_STATE_IN_FLIGHT", True)
            assert "In flight: sent over the present link" in explained["explanation"]
            assert [one["name"] for one in explained["silent"]] == ["gone"] * (nowhere in listed)
            (found,), _ = await asked("object", "default/configmap/cm1")
            assert (found["node_id"], found["object"]["state"]) == ("edge-b", "DELIVERY_STATE_IN_FLIGHT")


async def said(hub: Replicas, *command: str) -> tuple[Any, str]:
    """What a command answers by way of the first dispatcher alone, and what it tells beside."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ctl", "--dispatcher", only_first(hub).dispatcher, *command, "-o", "json"),
        cwd=ROOT,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    return json.loads(out), err.decode()


async def test_a_dispatcher_that_is_silent_costs_no_more_than_its_time(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """It takes connections and says nothing; the answer is there before the caller gives up."""
    async with running_replicas(tmp_path, databases, authority, 1) as hub, hub[0].edge("edge-a"):
        with socket.create_server((HOST, 0)) as mute:
            address = f"{HOST}:{mute.getsockname()[1]}"
            peer = DispatcherPeer(dispatcher_id="d-mute", name="mute", address=address)
            hub[0].app.peers.seen([hub[0].app.peers.own, peer])
            wanted = pb.ListNodesRequest(everywhere=True)
            answer = await hub[0].admin.ListNodes(wanted, timeout=3)
            assert [(one.node_id, one.connected) for one in answer.nodes] == [("edge-a", True)]
            assert [(one.name, one.address) for one in answer.silent] == [("mute", address)]
            hub[0].app.peers.seen([hub[0].app.peers.own])
            assert not (await hub[0].admin.ListNodes(wanted, timeout=3)).silent


async def test_dispatchers_given_beside_are_asked_where_the_first_cannot_ask_them(
    tmp_path: Path, databases: Databases, authority: TestAuthority, capsys: pytest.CaptureFixture[str]
) -> None:
    """As before: it is asked directly."""
    async with (
        running_replicas(tmp_path, databases, authority) as hub,
        hub[1].edge("edge-b"),
        Hub(access(hub)) as asked,
    ):
        other = hub[1].app.peers.own
        unreachable = DispatcherPeer(dispatcher_id="d-other", name=other.name, address=f"{HOST}:1")
        hub[0].app.peers.seen([hub[0].app.peers.own, unreachable])
        assert [(one.node_id, one.connected) for one in await asked.nodes()] == [("edge-b", True)]
        assert "dispatcher-1 at 127.0.0.1:1 did not answer" in capsys.readouterr().err
        hub[0].app.peers.seen([hub[0].app.peers.own])
        assert [one.connected for one in await asked.nodes()] == [False]


async def test_links_are_told_and_a_connector_is_drained_by_way_of_a_dispatcher(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C11: neither the connector nor sessions is reached. Another connector keeps its links."""
    async with (
        running_replicas(tmp_path, databases, authority) as hub,
        hub[0].edge("edge-a"),
        hub[1].edge("edge-b"),
        Hub(only_first(hub)) as asked,
    ):
        connector = await asked.connector("connector-0")
        assert [link.node_id for link in await connector.links()] == ["edge-a"]
        assert await connector.links("edge-b") == []
        assert await connector.count() == 1
        with pytest.raises(CtlFault, match="no connector nowhere is attached to this dispatcher"):
            await asked.connector("nowhere")
        answer = await connector.drain(DrainRequest(links_per_second=1000))
        assert answer.closed == 1
        assert await connector.count() == 0
        assert len(hub[1].connector.app.links) == 1

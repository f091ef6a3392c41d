"""Tokens, certificates and revocations by the command line, against a real hub."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

from tests.support.enrolment import EnrolledHub
from tests.support.processes import ROOT, clean_environment


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The answer of `-o json`."""
        return json.loads(self.out)


async def ctl(hub: EnrolledHub, *arguments: str) -> Ended:
    """Runs `cloudhubctl`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ctl", *arguments),
        cwd=ROOT,
        env={**clean_environment(), "CLOUDHUBCTL_SESSIONS": hub.hub.address("sessions")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def test_a_token_is_made_listed_used_and_revoked(enrolled: EnrolledHub) -> None:
    made = await ctl(enrolled, "token", "create", "--nodes", "edge-*", "--uses", "2", "--hours", "1")
    assert made.code == 0, made.err
    token = made.out.strip()
    assert (await enrolled.edge_crt(token)).status == 200
    (listed,) = (await ctl(enrolled, "token", "list", "-o", "json")).json
    assert (listed["node_pattern"], listed["uses"], listed["uses_left"]) == ("edge-*", 2, 1)
    assert listed["token_id"] in made.err
    table = await ctl(enrolled, "token", "list")
    assert "edge-*" in table.out
    assert "1 of 2" in table.out
    assert token.partition(".")[2] not in table.out

    revoked = await ctl(enrolled, "token", "revoke", listed["token_id"])
    assert (revoked.code, "is revoked" in revoked.out) == (0, True)
    assert (await enrolled.edge_crt(token, "edge-2")).status == 401
    again = await ctl(enrolled, "token", "revoke", "0")
    assert again.code != 0
    assert "there is no token 0" in again.err


async def test_a_node_is_revoked_and_reinstated(enrolled: EnrolledHub) -> None:
    assert (await enrolled.edge_crt(await enrolled.token())).status == 200
    asked = await ctl(enrolled, "revoke-node", "edge-1")
    assert "Give --yes" in asked.err
    revoked = await ctl(enrolled, "revoke-node", "edge-1", "--yes")
    assert revoked.out == "the certificates of edge-1 are refused; it was not connected\n"
    table = await ctl(enrolled, "certificates")
    assert [word for word in table.out.split() if word in ("edge-1", "revoked")] == ["edge-1", "revoked"]
    listed = await ctl(enrolled, "revoked-nodes")
    assert listed.out.split()[:5] == ["NODE", "REVOKED", "SINCE", "THEN", "edge-1"]
    assert listed.out.endswith("locked out\n")
    assert (await ctl(enrolled, "revoked-nodes", "--prefix", "gate-")).err == "no node is revoked\n"
    assert (await enrolled.edge_crt(await enrolled.token())).status == 200
    assert (await ctl(enrolled, "revoked-nodes")).out.endswith("enrolled anew\n")
    assert (await ctl(enrolled, "reinstate-node", "edge-1")).code == 0
    assert (await ctl(enrolled, "revoked-nodes", "-o", "json")).json == []
    certificates = (await ctl(enrolled, "certificates", "--prefix", "edge-", "-o", "json")).json
    assert not any(one.get("revoked") for one in certificates)
    twice = await ctl(enrolled, "reinstate-node", "edge-1")
    assert "edge-1 is not revoked" in twice.err

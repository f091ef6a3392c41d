"""Our edge agent and enrolment: from a join token to the first message, and certificates that change under
traffic."""

import asyncio
import datetime
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from cloudhub.v1 import dispatcher_pb2, enrolment_pb2
from edge.agent import EdgeFleet
from edge.enrolment import Enroller, EnrolmentFault, read_join_token
from edge.node_files import NodeFiles, StoredFault, read_authorities
from edge.renewal import Renewals
from edge.settings import EdgeSettings
from services.enrolment.app import EnrolmentApp
from tests.support.certs import TestAuthority
from tests.support.enrolment import EnrolledHub, running_enrolment
from tests.support.hub import request
from tests.support.processes import HOST, eventually

ROOT = Path(__file__).parent.parent.parent
_ACKNOWLEDGED = dispatcher_pb2.DELIVERY_STATE_ACKNOWLEDGED
_LIST = enrolment_pb2.ListTokensRequest()
# Enough for a link and the end of enrolment on a machine that does much else: certificates begin and end with
# whole seconds, and one that expires earlier costs a use of the token.
_LIFE_SECONDS = 6.0


def renewals(hub: EnrolledHub, token: str, server: str = "") -> Renewals:
    folder = hub.folder / "edge"
    joined = read_join_token(token) if token else None
    return Renewals(Enroller(server or hub.server, folder), [NodeFiles(folder, "edge-1")], joined)


@asynccontextmanager
async def fleet_of(
    hub: EnrolledHub, kept: Renewals, transport: Literal["websocket", "quic"] = "websocket"
) -> AsyncIterator[EdgeFleet]:
    """The agent of edge-1, as the program runs it."""
    await kept.enrol()
    folder = hub.folder / "edge"
    settings = EdgeSettings(
        server=f"wss://localhost:{hub.hub.connector.app.edge_port}",
        quic_server=f"quic://localhost:{hub.hub.connector.app.quic_port}",
        transport=transport,
        ca=folder / "ca.crt",
        certificates=folder,
        database=folder / "edge.db",
        first_delay_seconds=0.02,
        most_delay_seconds=0.2,
    )
    async with EdgeFleet(settings, ["edge-1"], on_certificate_refused=kept.refused) as fleet:
        renewing = asyncio.create_task(kept.run(lambda node_id: fleet[node_id].certificate_renewed()))
        try:
            async with asyncio.timeout(25):
                await fleet.connected()
            yield fleet
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])


@asynccontextmanager
async def expired_offline(
    hub: EnrolledHub, token: str, transport: Literal["websocket", "quic"] = "websocket"
) -> AsyncIterator[tuple[EdgeFleet, int]]:
    """An agent whose certificate expired while nobody could renew it, cut from the hub; and the port at which
    it expects enrolment."""
    async with AsyncExitStack() as stack:
        async with running_enrolment(hub.hub, hub.authority, certificate_seconds=_LIFE_SECONDS) as app:
            port = app.port
            kept = renewals(hub, token, f"https://localhost:{port}")
            fleet = await stack.enter_async_context(fleet_of(hub, kept, transport))
        await until_expired(hub.folder)
        fleet["edge-1"].cut()
        await eventually(lambda: fleet["edge-1"].counters.dials_failed > 0, 10, "a refusal")
        yield fleet, port


async def until_expired(folder: Path) -> None:
    """No hub takes the present certificate any more; they differ about the second in which it ends."""
    ended = present(folder).not_valid_after_utc + datetime.timedelta(seconds=1)
    await eventually(lambda: datetime.datetime.now(datetime.UTC) > ended, 15, "the certificate's end")


def enrolment_at(hub: EnrolledHub, port: int) -> AbstractAsyncContextManager[EnrolmentApp]:
    """The hub's enrolment, back at the port that agents know."""
    return running_enrolment(hub.hub, hub.authority, listen=f"{HOST}:{port}")


def present(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "edge" / "nodes" / "edge-1.crt").read_bytes())


async def test_an_agent_that_knows_address_and_token_has_its_first_message_within_5_s(
    enrolled: EnrolledHub,
) -> None:
    await enrolled.hub.accept(request("edge-1"))
    token = await enrolled.token()
    began = time.monotonic()
    async with fleet_of(enrolled, renewals(enrolled, token)) as fleet:
        await eventually(lambda: fleet.total("acknowledged") == 1, 10, "the first message")
        took = time.monotonic() - began
    assert took < 5.0
    # Once more, without a token: the certificate is there.
    async with fleet_of(enrolled, renewals(enrolled, "")):
        pass


async def test_a_revoked_node_that_enrolled_anew_comes_in_over_quic(enrolled: EnrolledHub) -> None:
    """The link tells which certificate it showed, whatever carries it."""
    async with fleet_of(enrolled, renewals(enrolled, await enrolled.token()), "quic") as fleet:
        request = enrolment_pb2.RevokeNodeRequest(node_id="edge-1")
        assert (await (await enrolled.admin()).RevokeNode(request, timeout=10)).was_connected
        await eventually(lambda: fleet["edge-1"].counters.dials_failed > 0, 10, "a refusal")
        assert fleet.links == 0
    for suffix in ("crt", "key"):
        (enrolled.folder / "edge" / "nodes" / f"edge-1.{suffix}").unlink()
    async with fleet_of(enrolled, renewals(enrolled, await enrolled.token()), "quic"):
        pass


async def test_a_hub_whose_ca_is_not_that_of_the_token_is_not_trusted(
    enrolled: EnrolledHub, tmp_path: Path
) -> None:
    token = await enrolled.token()
    other = ("0" if token[0] != "0" else "1") + token[1:]
    with pytest.raises(EnrolmentFault, match="not the one that the token names"):
        await renewals(enrolled, other).enrol()
    assert not (enrolled.folder / "edge").exists()
    # The token was not shown to it.
    (kept,) = (await (await enrolled.admin()).ListTokens(_LIST, timeout=10)).tokens
    assert kept.uses_left == 1


async def test_a_refusal_ends_the_enrolment_and_what_passes_is_tried_again(
    enrolled: EnrolledHub, authority: TestAuthority
) -> None:
    with pytest.raises(EnrolmentFault, match="not for node edge-1"):
        await renewals(enrolled, await enrolled.token("gate-*")).enrol()
    with pytest.raises(EnrolmentFault, match="does not exist: give a join token"):
        await renewals(enrolled, "").enrol()
    token = await enrolled.token()
    await enrolled.hub.sessions.stop()
    enrolling = asyncio.create_task(renewals(enrolled, token).enrol())
    await eventually(lambda: _count(enrolled, "sessions") > 0, 10, "an answer that sessions is away")
    await enrolled.hub.sessions.start()
    async with asyncio.timeout(20):
        await enrolling


def _count(hub: EnrolledHub, outcome: str) -> float:
    return float(hub.app.metrics.requests.labels(outcome)._value.get())


async def test_certificates_are_renewed_in_the_middle_of_traffic_and_no_message_is_lost(
    enrolled: EnrolledHub, authority: TestAuthority
) -> None:
    """The link outlives its certificate; the next one is opened with the present certificate."""
    token = await enrolled.token()
    async with running_enrolment(enrolled.hub, authority, certificate_seconds=4.0) as app:
        kept = renewals(enrolled, token, f"https://localhost:{app.port}")
        async with fleet_of(enrolled, kept) as fleet:
            first = present(enrolled.folder)
            serials, published = {first.serial_number}, 0
            async with asyncio.timeout(40):
                for number in itertools.count():
                    await enrolled.hub.accept(request("edge-1", name=f"m{number}", uid=f"u{number}"))
                    published = number + 1
                    serials.add(present(enrolled.folder).serial_number)
                    if len(serials) >= 3 and first.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
                        break
                    await asyncio.sleep(0.02)  # The pace of the traffic.
            # Twice renewed, and the first certificate has expired; the first link is still the one.
            assert fleet["edge-1"].counters.links_opened == 1
            fleet["edge-1"].cut()
            await enrolled.hub.accept(request("edge-1", name="last", uid="last"))
            await eventually(
                lambda: fleet.total("acknowledged") >= published + 1, 15, "every message is acknowledged"
            )
            assert fleet["edge-1"].counters.links_opened == 2
            for number in range(published):
                explained = await enrolled.hub.explain("edge-1", key=f"u{number}")
                assert explained.state == _ACKNOWLEDGED


async def test_the_cas_successor_reaches_an_edge_before_it_signs_anything_else(
    enrolled: EnrolledHub, authority: TestAuthority, tmp_path: Path
) -> None:
    """A CA is rotated without a link dropped: trusted by the hub first, then signing, then the only one."""
    await renewals(enrolled, await enrolled.token()).enrol()
    successor = TestAuthority(tmp_path / "successor", "successor")
    both = tmp_path / "both.crt"
    both.write_bytes(authority.certificate.read_bytes() + successor.certificate.read_bytes())
    changes = {
        "client_ca": both,
        "ca_certificate": successor.certificate,
        "ca_private_key": successor.key_file,
    }
    folder = enrolled.folder / "edge"
    async with running_enrolment(enrolled.hub, authority, **changes) as app:
        server = f"https://localhost:{app.port}"
        renewed = await asyncio.to_thread(Enroller(server, folder).renew, "edge-1")
    new = x509.load_pem_x509_certificate(successor.certificate.read_bytes())
    renewed.verify_directly_issued_by(new)
    old = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    assert read_authorities(folder) == [old, new]


@pytest.mark.parametrize("transport", ["websocket", "quic"])
async def test_a_certificate_that_expired_offline_is_replaced_by_token_without_a_restart(
    enrolled: EnrolledHub, transport: Literal["websocket", "quic"]
) -> None:
    async with expired_offline(enrolled, await enrolled.token(uses=2), transport) as (fleet, port):
        former = present(enrolled.folder).serial_number
        async with enrolment_at(enrolled, port):
            await enrolled.hub.accept(request("edge-1"))
            await enrolled.hub.until_state("edge-1", "uid-cm1", _ACKNOWLEDGED, 60)
        assert present(enrolled.folder).serial_number != former
        assert fleet.links == 1
    (kept,) = (await (await enrolled.admin()).ListTokens(_LIST, timeout=10)).tokens
    assert kept.uses_left == 0


async def test_a_token_that_is_used_up_is_said_so_and_the_hub_is_left_alone(enrolled: EnrolledHub) -> None:
    """Links are refused all the time meanwhile, and each of them could be a reason to ask again."""
    with capture_logs() as logs:
        async with (
            expired_offline(enrolled, await enrolled.token(uses=1)) as (fleet, port),
            enrolment_at(enrolled, port) as app,
        ):
            refused = app.metrics.requests.labels("token_used_up")._value
            await eventually(lambda: refused.get() > 0, 60, "a refusal by enrolment")
            dials = fleet["edge-1"].counters.dials_failed
            await eventually(
                lambda: fleet["edge-1"].counters.dials_failed >= dials + 5, 20, "more refused links"
            )
            assert refused.get() == 1
    (told,) = _events(logs, "enrolment.refused")
    assert "the token was used as often as it may be" in told["detail"]
    assert told["again_in_seconds"] >= 15


async def test_without_a_token_an_expired_certificate_is_said_once_per_attempt(enrolled: EnrolledHub) -> None:
    token = read_join_token(await enrolled.token())
    folder = enrolled.folder / "edge"
    async with running_enrolment(enrolled.hub, enrolled.authority, certificate_seconds=_LIFE_SECONDS) as app:
        await asyncio.to_thread(Enroller(f"https://localhost:{app.port}", folder).enrol, "edge-1", token)
        port = app.port
    with capture_logs() as logs:
        async with fleet_of(enrolled, renewals(enrolled, "", f"https://localhost:{port}")) as fleet:
            await until_expired(enrolled.folder)
            fleet["edge-1"].cut()
            async with enrolment_at(enrolled, port) as app:
                failed = app.metrics.requests.labels("certificate_expired")._value
                await eventually(lambda: _events(logs, "enrolment.refused"), 60, "the agent's word")
                dials, asked = fleet["edge-1"].counters.dials_failed, failed.get()
                await eventually(
                    lambda: fleet["edge-1"].counters.dials_failed >= dials + 5, 20, "more refused links"
                )
                assert failed.get() == asked
    (told,) = _events(logs, "enrolment.refused")
    assert told["detail"].endswith("edge-1.crt has expired: give a join token")


def _events(logs: Sequence[Mapping[str, Any]], event: str) -> list[Mapping[str, Any]]:
    return [line for line in logs if line["event"] == event]


@pytest.mark.parametrize("transport", ["websocket", "quic"])
async def test_a_revoked_node_comes_in_by_a_token_made_afterwards_though_its_certificate_is_unexpired(
    enrolled: EnrolledHub, transport: Literal["websocket", "quic"]
) -> None:
    """A token made before lets it stay out."""
    before = await enrolled.token(uses=2)
    with capture_logs() as logs:
        async with fleet_of(enrolled, renewals(enrolled, before), transport):
            revoke = enrolment_pb2.RevokeNodeRequest(node_id="edge-1")
            await (await enrolled.admin()).RevokeNode(revoke, timeout=10)
            await eventually(lambda: _events(logs, "enrolment.refused"), 20, "the agent's word")
    assert "revoked after the token was made" in _events(logs, "enrolment.refused")[0]["detail"]
    async with fleet_of(enrolled, renewals(enrolled, await enrolled.token()), transport) as fleet:
        assert fleet["edge-1"].counters.dials_failed > 0


async def test_a_certificate_that_could_not_be_kept_costs_no_second_use_of_the_token(
    enrolled: EnrolledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails, or the process dies, between the new key and its certificate."""
    async with expired_offline(enrolled, await enrolled.token(uses=2)) as (fleet, port):
        installed = NodeFiles.install

        def fails_once(files: NodeFiles, certificate: x509.Certificate) -> None:
            monkeypatch.setattr(NodeFiles, "install", installed)
            raise StoredFault("no space left")

        monkeypatch.setattr(NodeFiles, "install", fails_once)
        async with enrolment_at(enrolled, port) as app:
            async with asyncio.timeout(60):
                await fleet.connected()
            assert app.metrics.requests.labels("token")._value.get() == 2


async def test_a_clock_far_ahead_uses_no_token_and_renews_once(
    enrolled: EnrolledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = renewals(enrolled, await enrolled.token(uses=5))
    async with fleet_of(enrolled, kept) as fleet:
        first = present(enrolled.folder).serial_number
        ahead = datetime.timedelta(days=3650).total_seconds()
        monkeypatch.setattr("edge.renewal._now", lambda: datetime.datetime.now().timestamp() + ahead)
        # As a link would: the agent looks at the clock again.
        kept.refused("edge-1")
        await eventually(lambda: present(enrolled.folder).serial_number != first, 20, "a renewal")
        second = present(enrolled.folder).serial_number
        kept.refused("edge-1")
        await enrolled.hub.accept(request("edge-1"))
        await eventually(lambda: fleet.total("acknowledged") == 1, 10, "a message")
        assert present(enrolled.folder).serial_number == second
    (listed,) = (await (await enrolled.admin()).ListTokens(_LIST, timeout=10)).tokens
    assert listed.uses_left == 4


async def _program(hub: EnrolledHub, token: str) -> asyncio.subprocess.Process:
    """`cloudhub-edge` with the token in its environment."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edge", "--enrol", hub.server, "--node", "edge-1"),
        *("--server", f"wss://localhost:{hub.hub.connector.app.edge_port}"),
        *("--certificates", str(hub.folder / "edge"), "--database", str(hub.folder / "edge.db")),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
            "CLOUDHUB_EDGE_TOKEN": token,
        },
    )


async def _worked_and_stopped(hub: EnrolledHub, process: asyncio.subprocess.Process) -> bytes:
    """What it said until it ended on request, after it acknowledged a message."""
    try:
        await hub.hub.accept(request("edge-1"))
        await hub.hub.until_state("edge-1", "uid-cm1", _ACKNOWLEDGED, 30)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            _, told = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, told
    return told


async def test_a_program_that_is_refused_ends_with_one_sentence_and_no_secret(
    enrolled: EnrolledHub,
) -> None:
    token = await enrolled.token("gate-*")
    process = await _program(enrolled, token)
    async with asyncio.timeout(30):
        _, told = await process.communicate()
    assert process.returncode == 1
    assert b"cloudhub-edge: the hub refuses (403): the token is not for node edge-1" in told
    assert b"eyJ" not in told


async def test_a_program_enrols_and_stops_on_request(enrolled: EnrolledHub) -> None:
    process = await _program(enrolled, await enrolled.token())
    told = await _worked_and_stopped(enrolled, process)
    assert b"node.enrolled" in told
    assert b"eyJ" not in told


async def test_a_program_whose_node_was_revoked_comes_in_by_a_new_token(enrolled: EnrolledHub) -> None:
    """Its certificate is good by its dates, so it is a link that tells."""
    token = read_join_token(await enrolled.token())
    await asyncio.to_thread(Enroller(enrolled.server, enrolled.folder / "edge").enrol, "edge-1", token)
    revoke = enrolment_pb2.RevokeNodeRequest(node_id="edge-1")
    await (await enrolled.admin()).RevokeNode(revoke, timeout=10)
    process = await _program(enrolled, await enrolled.token())
    told = await _worked_and_stopped(enrolled, process)
    assert b"certificate.refused" in told
    assert b"node.enrolled" in told
    assert b"eyJ" not in told

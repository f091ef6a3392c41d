"""Who gets no certificate, with the reason; one hub refuses them all."""

import asyncio
import datetime
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from cloudhub.v1 import enrolment_pb2 as pb
from services.sessions.enrolment.tokens import make_jwt
from tests.support.certs import TestAuthority
from tests.support.enrolment import EnrolledHub, request_for
from tests.support.processes import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("no_secret_in_logs")]

LATER = datetime.timedelta(hours=1)


async def test_the_ca_is_had_by_everybody_and_is_what_tokens_name(shared: EnrolledHub) -> None:
    found = await shared.get("/ca.crt")
    assert found.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (await shared.token()).startswith(hashlib.sha256(found.body).hexdigest() + ".ey")


Prepare = Callable[[EnrolledHub], Any]


async def expired(hub: EnrolledHub) -> str:
    token = await hub.token(valid_seconds=1)
    await asyncio.sleep(1.1)  # The expiry of a token is told in whole seconds of the wall clock.
    return token


async def revoked(hub: EnrolledHub) -> str:
    made = await hub.created()
    request = pb.RevokeTokenRequest(token_id=made.token.token_id)
    await (await hub.admin()).RevokeToken(request, timeout=10)
    return made.join_token


async def used_up(hub: EnrolledHub) -> str:
    token = await hub.token()
    assert (await hub.edge_crt(token, "edge-2")).status == 200
    return token


async def of_another_hub(hub: EnrolledHub) -> str:
    return "0." + make_jwt(b"another hub's key, of 32 bytes..", "1", "s", 2_000_000_000_000)


async def altered(hub: EnrolledHub) -> str:
    token = await hub.token()
    return token[:-1] + ("A" if token[-1] != "A" else "Q")


async def for_another_name(hub: EnrolledHub) -> str:
    return await hub.token("gate-*")


async def malformed(hub: EnrolledHub) -> str:
    return "hash.not-a-jwt"


@pytest.mark.parametrize(
    ("prepare", "status", "text"),
    [
        (expired, 401, "expired"),
        (revoked, 401, "was revoked"),
        (used_up, 401, "as often as"),
        (of_another_hub, 401, "not signed by this hub"),
        (altered, 401, "not signed by this hub"),
        (malformed, 401, "no join token"),
        (for_another_name, 403, "not for node edge-1"),
    ],
)
async def test_a_token_that_is_not_good_is_refused_with_the_reason(
    shared: EnrolledHub, prepare: Prepare, status: int, text: str
) -> None:
    answer = await shared.edge_crt(await prepare(shared))
    assert (answer.status, text in answer.text) == (status, True), answer


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer ", "Basic abc", "", "Bearer \xe9.b.c"])
async def test_an_authorization_that_is_none_is_401(shared: EnrolledHub, authorization: str) -> None:
    answer = await shared.get("/edge.crt", request_for(), NodeName="edge-1", Authorization=authorization)
    assert answer.status == 401


async def test_of_two_nodes_that_replay_a_token_at_once_exactly_one_wins(shared: EnrolledHub) -> None:
    for attempt in range(3):
        token = await shared.token()
        answers = await asyncio.gather(
            *(shared.edge_crt(token, f"edge-{attempt}{number}") for number in range(4))
        )
        assert sorted(answer.status for answer in answers) == [200, 401, 401, 401]


async def test_without_a_token_or_certificate_it_is_401(shared: EnrolledHub) -> None:
    answer = await shared.edge_crt()
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_certificate_of_another_node_or_of_no_node_is_401(
    shared: EnrolledHub,
) -> None:
    other = await shared.edge_crt(shown=shared.authority.node("edge-2"))
    assert (other.status, "'edge-2'" in other.text) == (401, True)
    service = await shared.edge_crt(shown=shared.authority.service())
    assert (service.status, "no node's" in service.text) == (401, True)


async def test_a_certificate_that_tls_does_not_take_gets_no_answer(
    shared: EnrolledHub, tmp_path: Path
) -> None:
    """C6 for enrolment: expired, not yet valid, of another CA. Each is counted and told by its reason, also
    where a token that is good came with it."""
    token = await shared.token()
    bad = {
        "certificate_expired": shared.authority.issue("system:node:edge-1", ends=-LATER / 2, file="a"),
        "certificate_not_yet_valid": shared.authority.issue("system:node:edge-1", starts=LATER / 2, file="b"),
        "certificate_untrusted": TestAuthority(tmp_path / "other", "other").node("edge-1"),
    }
    requests = shared.app.metrics.requests
    for reason, shown in bad.items():
        counted = requests.labels(reason)._value.get()
        with capture_logs() as logs:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await shared.edge_crt(token, shown=shown)
            await eventually(lambda: [one for one in logs if one["event"] == "handshake.failed"], 5)
        assert logs[-1]["reason"] == reason
        assert requests.labels(reason)._value.get() == counted + 1
    # Nothing of it is left over, and others are served.
    assert (await shared.get("/ca.crt")).status == 200


@pytest.mark.parametrize("by_certificate", [False, True])
async def test_a_wrong_signing_request_is_400_and_takes_no_use(
    shared: EnrolledHub, by_certificate: bool
) -> None:
    """All wrong kinds are in `test_signing_request`."""
    token = "" if by_certificate else await shared.token()
    shown = shared.authority.node("edge-1") if by_certificate else None
    for body in (b"", b"no request", request_for("edge-2"), request_for(organizations=())):
        answer = await shared.edge_crt(token, body=body, shown=shown)
        assert (answer.status, "signing request" in answer.text) == (400, True)
    assert (await shared.edge_crt(token, shown=shown)).status == 200


@pytest.mark.parametrize("node_id", ["", "Edge", "a b", "e" * 53, "../x"])
async def test_a_node_name_that_is_none_is_400(shared: EnrolledHub, node_id: str) -> None:
    answer = await shared.edge_crt(await shared.token("*"), node_id, body=request_for())
    assert (answer.status, "NodeName" in answer.text) == (400, True)


async def test_other_paths_and_methods_are_refused(shared: EnrolledHub) -> None:
    assert (await shared.get("/")).status == 404
    assert (await shared.get("/ca.crt", method="POST", body=b"x")).status == 405


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "CONNECT", "TRACE"])
async def test_no_method_ends_the_service(shared: EnrolledHub, method: str) -> None:
    """Invariant 10: an answer to HEAD has no body; one that had would end the listener, and the process."""
    answer = await shared.get("/ca.crt", method=method)
    assert answer.status == 405
    assert (await shared.get("/ca.crt")).status == 200

"""What a peer that has too much to do answers means the same to every client of ours: no answer."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from cloudhub.v1 import enrolment_pb2, sessions_pb2
from ctl.faults import CtlFault, ExitCode
from ctl.processes import Sessions
from services.dispatcher.sessions_client import SESSIONS_SERVICE, SessionsClient
from services.enrolment.app import running_app
from services.enrolment.settings import EnrolmentSettings
from services.runtime.errors import Unavailable
from services.runtime.rpc import open_channel, open_replicas_channel
from tests.support.certs import TestAuthority

CROWDED = (grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
Codes = Iterator[grpc.StatusCode]


class Crowded(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
    """Sheds every call with the next of the statuses, as gRPC's core does; answers emptily after the last."""

    def __init__(self, codes: Codes) -> None:
        self._codes = codes
        self.calls = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """See grpc."""

        async def shed(_: Any, context: Any) -> bytes:
            self.calls += 1
            code = next(self._codes, None)
            if code is not None:
                await context.abort(code)
            return b""

        async def shed_stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
            yield await shed(requests, context)

        if handler_call_details.method.rpartition("/")[2].startswith("Watch"):
            return grpc.unary_stream_rpc_method_handler(shed_stream)
        return grpc.unary_unary_rpc_method_handler(shed)


@asynccontextmanager
async def crowded(*codes: grpc.StatusCode) -> AsyncIterator[tuple[Crowded, str]]:
    """A server that sheds so many calls, one by one with these statuses, and its address."""
    handler = Crowded(iter(codes))
    server = grpc.aio.server(handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield handler, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.mark.parametrize("code", CROWDED)
async def test_a_dispatcher_takes_it_for_no_answer_of_sessions(code: grpc.StatusCode) -> None:
    """C48: not for a verdict about the sessions that it asked to open or to close."""
    async with crowded(*[code] * 6) as (_, address), open_channel(address) as channel:
        client = SessionsClient(channel, "d1", 5.0)
        for ask in (
            lambda: client.open([sessions_pb2.OpenSession(node_id="edge-1")]),
            lambda: client.close([sessions_pb2.CloseSession(node_id="edge-1")]),
            lambda: client.transfer([sessions_pb2.TransferSession(node_id="edge-1")]),
            lambda: client.held(),
        ):
            with pytest.raises(Unavailable):
                await ask()


@pytest.mark.parametrize("code", CROWDED)
async def test_a_call_that_is_shed_is_made_again_by_the_channel(code: grpc.StatusCode) -> None:
    """C48: nobody hears of it, if a replica has room the next moment."""
    async with (
        crowded(code) as (handler, address),
        open_replicas_channel(address, SESSIONS_SERVICE) as channel,
    ):
        await SessionsClient(channel, "d1", 5.0).locate(["edge-1"])
    assert handler.calls == 2


@pytest.mark.parametrize("code", CROWDED)
async def test_enrolment_says_again_later(
    code: grpc.StatusCode, authority: TestAuthority, tmp_path: Any
) -> None:
    """C48: an edge that enrols hears 503, and no refusal."""
    server = authority.issue("localhost", None, file="server")
    async with crowded(*[code] * 9) as (handler, address):
        settings = EnrolmentSettings(
            listen="127.0.0.1:0",
            grpc_listen="127.0.0.1:0",
            metrics_listen="127.0.0.1:0",
            certificate=server.certificate,
            private_key=server.key,
            client_ca=authority.certificate,
            ca_certificate=authority.certificate,
            ca_private_key=authority.key_file,
            sessions=address,
            grpc_insecure_loopback=True,
        )
        async with running_app(settings) as app:
            with pytest.raises(Unavailable):
                await app._issue(enrolment_pb2.IssueCertificateRequest(node_id="edge-1"), "")
    assert handler.calls


@pytest.mark.parametrize("code", CROWDED)
async def test_an_operator_is_told_to_try_again(code: grpc.StatusCode) -> None:
    """C48: by the exit code of a service that does not answer."""
    async with crowded(*[code] * 3) as (handler, address), open_channel(address) as channel:
        sessions = Sessions("sessions", address, channel, 5.0)
        with pytest.raises(CtlFault) as unary:
            await sessions.instances()
        with pytest.raises(CtlFault) as watch:
            async for _ in sessions.stream(sessions.admin.WatchSessions, sessions_pb2.WatchSessionsRequest()):
                raise AssertionError("it was answered")
    assert [fault.value.code for fault in (unary, watch)] == [ExitCode.UNREACHABLE] * 2
    assert handler.calls == 2

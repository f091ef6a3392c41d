"""How long the dispatcher waits for sessions: `services.dispatcher.sessions_client`."""

import asyncio
from typing import Any

import grpc
import pytest

from services.dispatcher.sessions_client import SessionsClient
from services.runtime.errors import Unavailable
from services.runtime.rpc import open_channel


class Silent(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
    """Never answers its first call."""

    calls = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """See grpc."""

        async def answer(_: Any, context: Any) -> bytes:
            self.calls += 1
            if self.calls == 1:
                await asyncio.Event().wait()
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


async def test_a_call_has_its_time_and_keeps_no_other_waiting() -> None:
    """Sessions that does not answer is away; another call meanwhile is answered at once."""
    server = grpc.aio.server(handlers=[Silent()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(10), open_channel(f"127.0.0.1:{port}") as channel:
        client = SessionsClient(channel, "d1", 0.5)
        first = asyncio.ensure_future(client.locate(["edge-1"]))
        await asyncio.wait([first], timeout=0.1)
        assert await client.locate(["edge-2"]) == {}
        assert not first.done()
        with pytest.raises(Unavailable, match="does not answer"):
            await first
    await server.stop(0)

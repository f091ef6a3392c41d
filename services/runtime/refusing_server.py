"""What a client is answered whose certificate proves nothing, or lets it call nothing, or who has more
connections than a caller may: whatever it calls, a refusal that says why.

A gRPC server of its own, so that nothing of the other one can be reached over such a connection, not even the
interceptor that would stop it.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import grpc

from services.runtime.access import Context
from services.runtime.callers import Callers, printable
from services.runtime.errors import Unauthenticated
from services.runtime.interceptor import status_of
from services.runtime.refusals import Refusals

_MOST_CALLS = 64
_OPTIONS = [
    # A verdict is given once per connection: who has a better certificate by then, or whose CA is known by
    # then, gets another one soon.
    ("grpc.max_connection_age_ms", 5_000),
    ("grpc.max_connection_age_grace_ms", 1_000),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_receive_message_length", 4_096),
    # Of what nobody reads.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 16_384),
]


class RefusingServer:
    """Answers every call of the `callers` at `socket_path` with their refusal, and has it told."""

    def __init__(
        self,
        socket_path: str,
        callers: Callers,
        refusals: Refusals,
        options: Sequence[tuple[str, int]],
    ) -> None:
        self._callers = callers
        self._refusals = refusals
        self._server = grpc.aio.server(
            handlers=[_Everything(self)], options=[*options, *_OPTIONS], maximum_concurrent_rpcs=_MOST_CALLS
        )
        self._server.add_insecure_port(f"unix:{socket_path}")

    async def start(self) -> None:
        """Serves."""
        await self._server.start()

    async def stop(self) -> None:
        """Ends all connections."""
        await self._server.stop(0)

    async def answer(self, method: str, context: Context) -> None:
        """Ends the call."""
        caller = self._callers.at(unquote(context.peer()))
        refusal = caller.refusal if caller else None
        if caller is None or refusal is None:
            # Its connection is gone, or nobody's.
            refusal = Unauthenticated("CERTIFICATE_MISSING", "the caller is not known")
        else:
            self._refusals.tell(caller, refusal, method=printable(method))
        await context.abort_with_status(status_of(refusal))


class _Everything(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
    """Every method there is and is not. What callers send is not read."""

    def __init__(self, server: RefusingServer) -> None:
        self._server = server

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """See grpc."""
        method: str = handler_call_details.method

        async def refuse(_: Any, context: Context) -> None:
            await self._server.answer(method, context)

        return grpc.stream_stream_rpc_method_handler(refuse)

"""DispatcherService.Subscribe: one stream per subscriber of upstream modules."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import unquote

import grpc

from cloudhub.v1.dispatcher_pb2 import (
    SubscribeRequest,
    SubscribeResponse,
    Subscription,
    UpstreamDelivery,
)
from services.dispatcher.upstream.subscriber_shares import MAX_MODULES
from services.dispatcher.upstream.upstream import Seat, Upstream
from services.runtime.callers import client_address
from services.runtime.errors import Crowded, InvalidRequest
from services.runtime.logs import get_log

DEFAULT_UNACKNOWLEDGED = 256
MOST_UNACKNOWLEDGED = 65_536
MOST_PER_RESPONSE = 256
MOST_BYTES_PER_RESPONSE = 1024 * 1024
_MODULE = re.compile(r"[a-z0-9-]{1,63}")

log = get_log(__name__)

R = TypeVar("R")
Context = grpc.aio.ServicerContext[Any, Any]


def check_modules(names: Sequence[str]) -> list[str]:
    """The modules, each once; InvalidRequest names what is wrong."""
    if len(names) > MAX_MODULES:
        raise InvalidRequest("subscription.modules", f"at most {MAX_MODULES}, got {len(names)}")
    modules = list(dict.fromkeys(names))
    for module in modules:
        if not _MODULE.fullmatch(module):
            raise InvalidRequest(
                "subscription.modules",
                f"a module is 1 to 63 of lowercase letters, digits and '-'; got {module[:80]!r}",
            )
    return modules


def check_subscription(subscription: Subscription) -> tuple[list[str], int]:
    """The modules and the credit that are asked for; InvalidRequest names what is wrong."""
    modules = check_modules(subscription.modules)
    if not modules:
        raise InvalidRequest("subscription.modules", 'name at least one module, for example "edgecontroller"')
    credit = subscription.max_unacknowledged or DEFAULT_UNACKNOWLEDGED
    if credit > MOST_UNACKNOWLEDGED:
        raise InvalidRequest(
            "subscription.max_unacknowledged", f"at most {MOST_UNACKNOWLEDGED}, got {credit}"
        )
    return modules, credit


def check_acknowledged(delivery_ids: Sequence[int], field: str = "acknowledged") -> Sequence[int]:
    """Those ids; InvalidRequest if they are more than anybody can hold."""
    if len(delivery_ids) > MOST_UNACKNOWLEDGED:
        raise InvalidRequest(
            field, f"at most {MOST_UNACKNOWLEDGED} ids in a request, got {len(delivery_ids)}"
        )
    return delivery_ids


async def serve_deliveries(
    upstream: Upstream,
    seat: Seat,
    requests: AsyncIterator[R],
    handle: Callable[[R], None],
    context: Context,
) -> AsyncIterator[list[UpstreamDelivery]]:
    """Hands on whatever is there whenever the stream is writable, until the caller ends it; the
    subscriber leaves then. Raises what the upstream ended it with. `handle` gets each further request of the
    caller."""
    gone = False

    def leave() -> None:
        # A cancelled call may leave this generator suspended in a `yield`: the call's own end counts.
        nonlocal gone
        if not gone:
            gone = True
            seat.wake.set()
            if seat.ended is None:
                returned = upstream.leave(seat.number)
                log.info("subscription.ended", subscriber=seat.number, returned=returned)

    context.add_done_callback(cast("Any", lambda _: leave()))

    async def read() -> None:
        async for request in requests:
            if gone or seat.ended is not None:
                return
            handle(request)

    reader = asyncio.create_task(read(), name=f"subscription-{seat.number}")
    reader.add_done_callback(lambda _: seat.wake.set())
    try:
        # Tells the caller that from now on everything for these modules is kept for it.
        await context.send_initial_metadata(())
        while not (gone or reader.done()):
            seat.wake.clear()
            if seat.ended is not None:
                raise seat.ended
            deliveries = upstream.take(seat.number, MOST_PER_RESPONSE, MOST_BYTES_PER_RESPONSE)
            if deliveries:
                yield deliveries
            else:
                await seat.wake.wait()
        if seat.ended is not None:
            raise seat.ended
        if reader.done():
            reader.result()
    finally:
        leave()
        reader.cancel()
        await asyncio.wait([reader])
        if not reader.cancelled():
            reader.exception()  # raised above if it was the reason


class UpstreamServicer:
    """Subscribe alone; the dispatcher's servicer delegates to it."""

    def __init__(self, upstream: Upstream, caller_of: Callable[[Context], str]) -> None:
        self._upstream = upstream
        self._caller_of = caller_of

    async def Subscribe(
        self,
        request_iterator: AsyncIterator[SubscribeRequest],
        context: Context,
    ) -> AsyncIterator[SubscribeResponse]:
        """See dispatcher.proto."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None:
            return
        if not first.HasField("subscription"):
            raise InvalidRequest("subscription", "the first request of a stream says what to receive")
        modules, credit = check_subscription(first.subscription)
        upstream, caller = self._upstream, self._caller_of(context)
        try:
            subscribed = upstream.shares.enter(caller, modules)
        except Crowded as error:
            upstream.metrics.subscriptions_refused.labels(error.reason.lower()).inc()
            raise
        seat = upstream.subscribe(modules, credit, subscribed=subscribed)
        log.info(
            "subscription.opened",
            modules=modules,
            caller=caller,
            peer=client_address(unquote(context.peer())),
            subscriber=seat.number,
        )

        def handle(request: SubscribeRequest) -> None:
            if request.HasField("subscription"):
                raise InvalidRequest("subscription", "only the first request of a stream may carry one")
            upstream.acknowledge(seat.number, check_acknowledged(request.acknowledged))

        async for deliveries in serve_deliveries(upstream, seat, requests, handle, context):
            yield SubscribeResponse(deliveries=deliveries)

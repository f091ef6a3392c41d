"""Lists of the hub's services, page by page."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

PAGE_SIZE = 1000
"""The most that the services give at a time."""


async def pages(
    method: Callable[..., Awaitable[Any]], request: Any, seconds: float | None = None
) -> AsyncIterator[Any]:
    """The answers to a listing, each within so many seconds. Raises AioRpcError."""
    request.page_size = PAGE_SIZE
    while True:
        answer = await method(request, timeout=seconds)
        yield answer
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token

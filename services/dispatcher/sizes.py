"""How large a message may be on its way from the store to the edge, how long a list of a service. Pure."""

from collections.abc import Sized

from services.runtime.errors import InvalidRequest

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Of an encoded message, whoever stored it: it fits into a batch of the link stream (32 MiB) with all that is
around it, and no edge is known to take a larger frame."""
# What the encoded message may have beside the content: names, extra fields.
MAX_BESIDE_CONTENT_BYTES = 64 * 1024
# Of a content, as far as a setting goes: the frame that an edge gets, with names in which each character is
# escaped, stays below MAX_BODY_BYTES.
MAX_CONTENT_BYTES = MAX_BODY_BYTES - 2 * MAX_BESIDE_CONTENT_BYTES
ELEMENT_BYTES = 64
"""What an element of a batch has around its message: numbers, flags, lengths."""

MAX_ELEMENTS = 65_536
"""Of a list in a request of another service: above what any release sends. 32 MiB, which gRPC takes, hold
millions of empty ones."""


def check_number(field: str, elements: Sized) -> None:
    """Bounds a list of another service's request. Raises InvalidRequest."""
    if len(elements) > MAX_ELEMENTS:
        raise InvalidRequest(field, f"{len(elements)} in one request; at most {MAX_ELEMENTS}")


def too_large(size_bytes: int) -> str:
    """Why a message of that size is not sent."""
    return f"too large to be sent: {size_bytes} bytes as encoded, at most {MAX_BODY_BYTES}"

"""Rendezvous hashing: a node goes to the same dispatcher for as long as that one is attached."""

from collections.abc import Iterable
from hashlib import blake2b


def _weight(node_id: str, address: str) -> bytes:
    return blake2b(f"{address}\0{node_id}".encode(), digest_size=8).digest()


def best_dispatcher(node_id: str, addresses: Iterable[str]) -> str | None:
    """The address with the highest weight for the node; None if there are none.

    When an address leaves, only its own nodes move; when it comes back, only they return.
    """
    return max(addresses, key=lambda address: (_weight(node_id, address), address), default=None)

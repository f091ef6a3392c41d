"""How an object's pending message stands in the session of its node; one dispatcher alone knows. Pure."""

from dataclasses import dataclass

from services.dispatcher.entry import EntryState
from services.dispatcher.policy import NodeDelivery


@dataclass(frozen=True, slots=True)
class Standing:
    """In a live session; there is none of a node that is away."""

    epoch: int
    in_flight: bool = False
    """Written to the present link and not acknowledged."""
    blocked_by: str = ""
    """The key of an earlier object of the same path that the edge has to acknowledge first."""
    doubtful_links: int = 0
    """How many links in a row the edge ended, if its messages go one at a time for that."""


def standing_in(epoch: int, policy: NodeDelivery, key: str) -> Standing:
    """In the session of that epoch."""
    earlier = policy.blocked_by(key)
    return Standing(
        epoch,
        policy.state_of(key) is EntryState.IN_FLIGHT,
        earlier.key if earlier else "",
        policy.doubtful_links,
    )


def newer(one: Standing | None, other: Standing) -> Standing:
    """Of two dispatchers that both have a session, while it moves, the one with the higher epoch is right."""
    return one if one is not None and one.epoch > other.epoch else other

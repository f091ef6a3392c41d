"""What a dispatcher holds: each part counts its own."""

from collections.abc import Iterable
from typing import Protocol

from cloudhub.v1.resources_pb2 import DispatcherResources
from services.runtime.resources import process_resources


class Holder(Protocol):
    """A part of the dispatcher that keeps something."""

    def count(self, held: DispatcherResources) -> None:
        """Adds what is kept here at the moment."""
        ...


def dispatcher_resources(holders: Iterable[Holder], *, collect_garbage: bool = False) -> DispatcherResources:
    """The answer to GetResources."""
    held = DispatcherResources(process=process_resources(collect_garbage=collect_garbage))
    for holder in holders:
        holder.count(held)
    return held

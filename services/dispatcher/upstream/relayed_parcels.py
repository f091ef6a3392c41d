"""What other dispatchers handed here and nobody here holds yet. No I/O."""

from collections.abc import Callable, Iterable

from services.dispatcher.upstream.parcel import Parcel


class RelayedParcels:
    """Waiting parcels of kind RELAYED, by the relay that brought them."""

    def __init__(self) -> None:
        self._of: dict[int, dict[int, Parcel]] = {}  # relay -> number -> parcel
        self._last_relay = 0

    def open(self) -> int:
        """A relay begins; gives back its number."""
        self._last_relay += 1
        self._of[self._last_relay] = {}
        return self._last_relay

    def close(self, relay: int) -> list[Parcel]:
        """It is over: what waits here is to be taken out before anything else is done."""
        return list(self._of.pop(relay).values())

    def is_open(self, relay: int) -> bool:
        """Whether it goes on."""
        return relay in self._of

    def add(self, parcel: Parcel) -> None:
        """It waits."""
        self._of[parcel.relay][parcel.number] = parcel

    def remove(self, parcel: Parcel) -> None:
        """It does not; no error if its relay is over."""
        self._of.get(parcel.relay, {}).pop(parcel.number, None)

    def having(self, wanted: Callable[[Parcel], bool]) -> Iterable[Parcel]:
        """Those that `wanted` says yes to, in the order of their relays and of their arrival."""
        return [parcel for waiting in self._of.values() for parcel in waiting.values() if wanted(parcel)]

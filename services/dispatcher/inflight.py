"""How much may be in flight to one node. Pure."""

from dataclasses import dataclass

from services.dispatcher.entry import Entry


@dataclass(slots=True)
class Window:
    """At most `most_messages` and `most_bytes` in flight; one message always may."""

    most_messages: int = 64
    most_bytes: int = 256 * 1024
    messages: int = 0
    bytes: int = 0

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether one more message of that size may go."""
        if self.messages == 0:
            return True
        return self.messages < self.most_messages and self.bytes + size_bytes <= self.most_bytes

    def add(self, entry: Entry) -> None:
        """The entry takes a slot."""
        self.messages += 1
        self.bytes += entry.size_bytes

    def remove(self, entry: Entry) -> None:
        """The entry's slot is free again."""
        self.messages -= 1
        self.bytes -= entry.size_bytes

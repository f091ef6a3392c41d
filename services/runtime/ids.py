"""Identifiers the hub makes itself."""

import random
import time

# Seeded by the operating system once per process. Ids must be unique, not secret, and asking the
# system for each costs more than the rest of a message's admission.
_random = random.Random(random.SystemRandom().getrandbits(256))

_VERSION_AND_VARIANT = 0x7 << 76 | 0b10 << 62
_RANDOM_BITS = (1 << 76) - 1 ^ 0b11 << 62


def new_id() -> str:
    """A UUID of this millisecond (RFC 9562, version 7) as text.

    Ids that grow with time stand next to each other in an index: one page takes a moment's messages, where
    random ids would touch a page for each.
    """
    at_ms = time.time_ns() // 1_000_000
    bits = at_ms << 80 | _random.getrandbits(76) & _RANDOM_BITS | _VERSION_AND_VARIANT
    digits = f"{bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

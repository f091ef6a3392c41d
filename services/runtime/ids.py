"""Identifiers the hub makes itself."""

import random

# Seeded by the operating system once per process. Ids must be unique, not secret, and asking the
# system for each costs more than the rest of a message's admission.
_random = random.Random(random.SystemRandom().getrandbits(256))

_VERSION_AND_VARIANT = 0x4 << 76 | 0b10 << 62
_RANDOM_BITS = (1 << 128) - 1 ^ (0xF << 76 | 0b11 << 62)


def new_id() -> str:
    """A random UUID (RFC 9562, version 4) as text."""
    bits = _random.getrandbits(128) & _RANDOM_BITS | _VERSION_AND_VARIANT
    digits = f"{bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

"""Identifiers the hub makes itself."""

import random

# Seeded by the operating system once per process. Ids must be unique, not secret, and asking the
# system for each costs more than the rest of a message's admission.
_random = random.Random(random.SystemRandom().getrandbits(256))


def new_id() -> str:
    """A random UUID (RFC 9562, version 4) as text."""
    digits = f"{_random.getrandbits(128):032x}"
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"

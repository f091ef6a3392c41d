"""Identifiers the hub makes itself."""

import random
import uuid

# Seeded by the operating system once per process. Ids must be unique, not secret, and asking the
# system for each costs more than the rest of a message's admission.
_random = random.Random(random.SystemRandom().getrandbits(256))


def new_id() -> str:
    """A random UUID (version 4) as text."""
    return str(uuid.UUID(int=_random.getrandbits(128), version=4))

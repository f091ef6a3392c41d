"""Identifiers the hub makes itself."""

import os
import uuid


def new_id() -> str:
    """A random UUID (version 4) as text."""
    return str(uuid.UUID(bytes=os.urandom(16), version=4))

"""One process at a time in a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderInUse(Exception):
    """Another process works in the folder; the text says what would be right."""


@contextmanager
def exclusive(folder: Path, option: str) -> Iterator[None]:
    """Makes the folder and holds its lock. Raises FolderInUse, which names the `option` that sets it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderInUse(f"{folder} is in use by another run; stop it, or give {option}") from None
        yield

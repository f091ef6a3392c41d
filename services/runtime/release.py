"""Which release of the hub this is."""

from functools import cache
from importlib.metadata import version


@cache
def release() -> str:
    """The version of the installed package."""
    return version("cloudhub")

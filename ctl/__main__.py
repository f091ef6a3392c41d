"""`python -m ctl` is `cloudhubctl`."""

from ctl import changing, enrolling, looking
from ctl.app import main

__all__ = ["changing", "enrolling", "looking", "main"]

if __name__ == "__main__":
    main()

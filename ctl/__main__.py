"""`python -m ctl` is `cloudhubctl`."""

from ctl import changing, looking
from ctl.app import main

__all__ = ["changing", "looking", "main"]

if __name__ == "__main__":
    main()

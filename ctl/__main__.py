"""`python -m ctl` is `cloudhubctl`."""

from ctl import changing, enrolling, looking, objects
from ctl.app import main

__all__ = ["changing", "enrolling", "looking", "main", "objects"]

if __name__ == "__main__":
    main()

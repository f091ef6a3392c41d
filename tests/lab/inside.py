"""`python -m tests.lab.inside NAMESPACE MODULE ...`: runs a module as a program in a network namespace."""

import runpy
import sys

from tests.lab.namespaces import enter

if __name__ == "__main__":
    enter(sys.argv[1])
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

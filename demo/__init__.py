"""`make run`: the whole hub on one machine, with a fleet of edge nodes and something to do."""

import os

# Read by grpc when it is imported: its fork handlers are of no use to children that are executed at
# once, and they speak up at every one of them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

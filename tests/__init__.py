import os

# Tests start processes while gRPC runs in this one. Its core would start its threads anew in each, for the
# moment until the program is loaded, and they run Python there.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

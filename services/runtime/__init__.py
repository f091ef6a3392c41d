"""What at least two services need: settings, lifecycle, gRPC, telemetry, store, batching."""

import os

# The gRPC core writes its own lines to stderr; what matters of them is told by our errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

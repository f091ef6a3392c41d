"""`make bench`: how fast the hub is on this machine, with real processes, TLS and disks."""

import demo  # noqa: F401  # first: it sets what grpc reads when it is imported

"""Real packets on one machine: a cloud and edge sites in namespaces, and what goes wrong between."""

import demo  # noqa: F401  # first: it sets what grpc reads when it is imported

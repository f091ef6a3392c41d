"""`make chaos`: a hub under load whose processes are killed and frozen, and proof that nothing broke."""

import demo  # noqa: F401  # first: it sets what grpc reads when it is imported

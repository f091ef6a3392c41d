"""Days of a hub in fast motion: what it holds and how it does, hour by hour, as a picture and a verdict."""

import demo  # noqa: F401  # first: it sets what grpc reads when it is imported

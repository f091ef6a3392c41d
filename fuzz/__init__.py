"""Hostile input: the same targets serve `make test` (few examples) and `make fuzz` (long runs)."""

import demo  # noqa: F401  # first: it sets what grpc reads when it is imported

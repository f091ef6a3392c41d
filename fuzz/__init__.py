"""Hostile input: the same targets serve `make test` (few examples) and `make fuzz` (long runs)."""

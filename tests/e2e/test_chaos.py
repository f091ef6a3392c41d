"""C35, C36, invariants 1 to 6: what `make chaos` does, with a fixed seed: two replicas of each service on PostgreSQL,
fault after fault under load for a minute, and every invariant held."""

"""Our own edge agent: the reference peer of the hub, the demo fleet and the load generator."""

"""`make run`: the whole hub on one machine, with a fleet of edge nodes and something to do."""

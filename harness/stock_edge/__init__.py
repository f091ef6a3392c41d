"""A double of KubeEdge's `edgecore`, as v1.21.2 to v1.23.1 behave on the link.

It is no `edgecore`: it does on the wire what those releases were seen to do, weaknesses included, and keeps
what it is sent in the two stores that they have. `tests/harness` holds it against recordings of the releases.
"""

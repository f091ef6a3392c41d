"""The outbox: what was accepted for which node, durable, and what became of it.

`records` and `ledger` are pure and hold every rule; `sql` loads rows, lets the ledger change them
and writes them back in one transaction; `writer` groups commits.
"""

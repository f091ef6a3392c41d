"""Who may enrol, and which certificates nodes have: join tokens, certificates, revocations."""

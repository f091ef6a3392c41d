"""The hub's three services and what they share."""

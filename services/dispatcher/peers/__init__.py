"""Dispatchers among themselves: who is there, hand-over hints, the sweep, NO-ACK messages, relays."""

"""The sessions service: who is connected where, under which epoch, within which limits."""

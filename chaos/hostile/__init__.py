"""Parties that break the rules beside everything else that a run does: what they do must harm nobody else."""

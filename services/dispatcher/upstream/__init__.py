"""What the nodes say: where it goes, in which order, and how long it is kept."""

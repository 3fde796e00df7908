"""Which layers cost what, and the choice among all that can be done to a network."""

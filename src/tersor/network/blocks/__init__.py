"""What one call of a block of a large model shows, and what can be changed in it."""

"""Training of language models in folders: block by block, and scales end to end."""

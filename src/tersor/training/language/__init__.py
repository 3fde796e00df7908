"""Training of large language models: block by block, end to end, and adapters merged into codes."""

"""Analysis of one recorded call of a large model's block, and rewrites of its weights."""

"""Structured pruning of graphs: what is known of each group, how much of each goes, and the repair of what stays."""

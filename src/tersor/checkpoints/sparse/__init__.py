"""Tensors with zeros, stored without them: masks, n:m patterns, and the layouts of compressed-tensors."""

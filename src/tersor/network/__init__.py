"""The model as a graph: capture, planning of sites, rewrites, corrections."""

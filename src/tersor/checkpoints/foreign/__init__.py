"""Reading untrusted files: paths, JSON, configurations and patterns, within bounds."""

"""What is read of other people's files: paths, JSON, configurations and patterns, within bounds."""

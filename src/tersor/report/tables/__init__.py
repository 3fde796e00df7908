"""What is printed as a table before anything is measured: plans, ranges, engines."""

"""The whole way: capture, rewrite, plan, calibrate, solve, correct, compile, measure."""

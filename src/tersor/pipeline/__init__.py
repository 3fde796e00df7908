"""The whole pipeline: capture, rewrite, plan, calibrate, solve, correct, compile, measure."""

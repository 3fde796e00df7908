"""Observing a network on the calibration data: statistics, Gram matrices, samples."""

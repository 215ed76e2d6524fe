"""Measured ratios; run `python -m benchmarks`."""

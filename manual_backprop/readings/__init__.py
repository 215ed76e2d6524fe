"""Readings of (a, delta), which need no more than one sweep forward and one back, and curvature."""

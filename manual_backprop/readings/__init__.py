"""What one sweep forward and one back already know: readings of (a, delta), and curvature."""

"""Anybody's gradients, custom rules and layers, checked as ours are."""

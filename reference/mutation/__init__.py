"""Mutation testing: gradients broken on purpose, to prove that a check can fail."""

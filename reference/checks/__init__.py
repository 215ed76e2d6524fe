"""The checks: of a step of ours, and of anybody's gradient, rule or layer."""

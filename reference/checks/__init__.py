"""The checks: of our own step, and of a user's gradient, rule or layer."""

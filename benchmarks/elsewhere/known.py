"""What is truly wrong, or inaccurate, in code of others, and who says so; such a failure is no false alarm."""

KNOWN: dict[str, tuple[str, str, str]] = {}
"""By name: (where, how far it is off, who judged)."""

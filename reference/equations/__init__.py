"""Every equation of a step by itself, and how far a right answer may be from it."""

"""The check of every equation of a step by itself, with the error that a right answer may have."""

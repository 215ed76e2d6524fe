"""What a run found, as files that people and machines read."""

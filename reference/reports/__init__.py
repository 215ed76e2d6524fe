"""The results of a run as files, for people and for machines."""

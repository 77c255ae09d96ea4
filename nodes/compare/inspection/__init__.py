"""Inspect Run: which pictures of a set a run found hard."""

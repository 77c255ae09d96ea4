"""Matching the colours of a whole picture to another's."""

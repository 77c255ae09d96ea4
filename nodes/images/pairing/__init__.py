"""Pairs of pictures: a source and the result that an edit model should make of it."""

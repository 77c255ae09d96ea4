"""Captions of pictures: where they come from, and the text files that hold them."""

"""Small pictures for the list on the image node."""

"""Reading picture files within bounds of time and memory, and keeping what was read."""

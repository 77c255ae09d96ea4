"""Content for masked places and new borders, for a sampler to start from."""

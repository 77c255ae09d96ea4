"""A MODEL and a CLIP prepared for autograd: frozen layers, offloading, checkpointing, memory forecast."""

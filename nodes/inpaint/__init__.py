"""Inpainting nodes: latent mask blend and restoring the unmasked part."""

"""Image to image nodes: partial denoising by strength."""

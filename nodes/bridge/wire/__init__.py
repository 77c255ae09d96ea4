"""What a wire (MODEL, CLIP, VAE) can carry, and how it is read by value."""

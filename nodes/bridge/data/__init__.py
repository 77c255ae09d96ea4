"""What a training works on: pictures as latents, prompts as conditioning, sample images."""

"""Pictures encoded to latents and prompts encoded to conditioning."""

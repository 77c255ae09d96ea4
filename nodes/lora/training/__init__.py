"""Training a LoRA, and saving it."""

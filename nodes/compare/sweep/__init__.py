"""A LoRA at several steps and strengths, as one grid of pictures."""

"""A LoRA from the difference of two models."""

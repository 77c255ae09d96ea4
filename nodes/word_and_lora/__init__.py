"""A word and a LoRA that are trained in one run."""

"""Loading a LoRA file and applying it to a model and its text encoder."""

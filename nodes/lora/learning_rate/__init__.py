"""The node that finds the learning rate of a LoRA training."""

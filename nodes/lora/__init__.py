"""LoRA nodes: training, injection, composition and inspection, and what they share about LoRA files."""

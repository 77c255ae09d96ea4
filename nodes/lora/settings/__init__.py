"""The settings that a LoRA file was trained with, as values of the trainer's widgets."""

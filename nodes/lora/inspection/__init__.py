"""What a LoRA file contains and how large its change is."""

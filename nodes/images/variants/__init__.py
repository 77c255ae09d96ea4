"""Caption Variants: captions edited, and varied while a set is trained on."""

"""Sliders and erased concepts: LoRAs that are trained on words or on pairs of pictures."""

"""Stacks of LoRAs for other packs' nodes."""

"""A LoRA file for the blueprint that makes one smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FILE, RANK = "blueprint-lora.safetensors", 32
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_"


def make(folder: Path) -> None:
    """Write `FILE`: two layers of rank `RANK`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    tensors = {}
    for part in ("k", "v"):
        at = LAYER + part
        tensors[f"{at}.lora_up.weight"] = draw.normal(size=(64, RANK)).astype("float32")
        tensors[f"{at}.lora_down.weight"] = draw.normal(size=(RANK, 48)).astype("float32")
        tensors[f"{at}.alpha"] = np.array(float(RANK), dtype="float32")
    save_file(tensors, folder / FILE)

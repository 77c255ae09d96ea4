"""Which tensor of a bundle each text encoder reads, by the keys that OneTrainer and ComfyUI document."""

import pytest
import torch
from bespoke.training.bundles import key_for

FLUX, SDXL = ("clip_l", "t5xxl"), ("clip_l", "clip_g")


@pytest.mark.parametrize(
    ("encoder", "encoders", "keys", "found"),
    [
        ("t5xxl", FLUX, ("clip_l", "t5"), "t5"),  # OneTrainer's FluxLoRASaver
        ("t5xxl", FLUX, ("t5", "t5xxl"), "t5xxl"),
        ("t5xxl", FLUX, ("clip_l", "t5_out"), None),
        ("clip_l", FLUX, ("clip_g", "t5"), "clip_g"),  # OneTrainer's issue 514: CLIP-L is written as clip_g
        ("clip_l", FLUX, ("clip_g_out", "t5"), None),
        ("clip_g", SDXL, ("clip_l",), None),
        ("gemma2_2b", ("gemma2_2b",), ("gemma",), "gemma"),
        ("qwen25_7b", ("qwen25_7b",), ("qwen",), "qwen"),
        ("umt5xxl", ("umt5xxl",), ("t5",), None),  # another vocabulary, of the same width
        ("clip_l", ("clip_l",), ("string_to_param.*",), "string_to_param.*"),
    ],
)
def test_the_key_of_each_encoder(encoder, encoders, keys, found):
    assert key_for(encoder, dict.fromkeys(keys, torch.zeros(1)), encoders) == found

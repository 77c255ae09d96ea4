"""Kinds of adapter that are recognised by their keys and not applied."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A word of a key between dots -> the kind. Names of parts are those of PEFT 0.21 and LyCORIS 4.1.
_KINDS = tuple(
    (re.compile(rf"(?:^|\.)(?:{words})(?=\.|$)"), kind)
    for words, kind in (
        (r"on_input", "(IA)^3 by LyCORIS"),
        (r"ia3_l", "(IA)^3 by PEFT"),
        (r"oft_blocks\.\d+", "kohya's OFT for Flux, with a rotation for each part of a fused layer"),
        (r"(?:oft|oft_embedding)_[Rr]", "OFT by PEFT"),
        (r"boft_[Rs]", "BOFT by PEFT"),
        (r"lora_E|ranknum", "AdaLoRA"),
        (r"lora_embedding_[AB]", "a LoRA of a table of words"),
        (r"[qp]_layer|lambda_layer", "T-LoRA"),
        (r"bm", "GLoRA with a core"),
        (r"glora_\w+", "GLoRA by PEFT"),
        (r"lokr_t1", "LoKr with two cores"),
        (r"p?vera_lambda_[bd]", "VeRA"),
        (r"randlora_\w+", "RandLoRA"),
        (r"vblora_\w+", "VB-LoRA"),
        (r"gralora_\w+", "GraLoRA"),
        (r"delora_\w+", "DeLoRA"),
        (r"hira_\w+", "HiRA"),
        (r"hra_u", "HRA"),
        (r"miss_block", "MiSS"),
        (r"road_(?:theta|alpha)", "RoAd"),
        (r"shira_weight", "SHiRA"),
        (r"(?:fourierft|waveft)_spectrum", "a spectral adapter (FourierFT, WaveFT)"),
        (r"trainable_tokens_delta", "trained tokens"),
        (r"lllite_unet_\w+", "ControlNet-LLLite, which is no LoRA"),
    )
)


def foreign_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """(the kind, the key that shows it) of a file that holds a kind of adapter which is not applied; else None."""
    for key in keys:
        for pattern, kind in _KINDS:
            if pattern.search(key):
                return kind, key
    return None

"""The parts of a layer in a LoRA file, by kohya's and LyCORIS' names. A key is a layer's name and a part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from torch import Tensor

from ..errors import InputError

UP = ".lora_up.weight"  # the factor that multiplies last
DOWN = ".lora_down.weight"  # the factor that reads the layer's input
MID = ".lora_mid.weight"  # a Tucker core between both
ALPHA = ".alpha"
DORA_SCALE = ".dora_scale"
NEW_SHAPE = ".reshape_weight"  # the shape that the layer is to have

HADA_W1_A, HADA_W1_B, HADA_T1 = ".hada_w1_a", ".hada_w1_b", ".hada_t1"
HADA_W2_A, HADA_W2_B, HADA_T2 = ".hada_w2_a", ".hada_w2_b", ".hada_t2"

LOKR_W1, LOKR_W1_A, LOKR_W1_B = ".lokr_w1", ".lokr_w1_a", ".lokr_w1_b"
LOKR_W2, LOKR_W2_A, LOKR_W2_B, LOKR_T2 = ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2"

OFT_BLOCKS, RESCALE = ".oft_blocks", ".rescale"

GLORA_A1, GLORA_A2, GLORA_B1, GLORA_B2 = ".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"

DIFF, SET_WEIGHT, NORM_WEIGHT = ".diff", ".set_weight", ".w_norm"  # of the weight's own shape
DIFF_BIAS, NORM_BIAS = ".diff_b", ".b_norm"  # of the bias' own shape

PEFT_UP, PEFT_DOWN = ".lora_B.weight", ".lora_A.weight"
PEFT_MAGNITUDE = ".lora_magnitude_vector"  # DoRA's, [out]
PEFT_UP_BIAS = ".lora_B.bias"  # PEFT's `lora_bias`: a bias of the up factor, which the layer's scale multiplies
WHOLE_BIAS = ".base_layer.bias"  # the whole bias after the training, of PEFT's `bias="all"` and `bias="lora_only"`

UNKNOWN = ""  # the part of a key that is none of a LoRA

# `UP`, `DOWN` and `DORA_SCALE` have other spellings, which the patterns below match. All others end a key as they are.
_AS_THEY_ARE = (
    *(ALPHA, DORA_SCALE, MID, NEW_SHAPE),
    *(DIFF, DIFF_BIAS, SET_WEIGHT, NORM_WEIGHT, NORM_BIAS, WHOLE_BIAS),
    *(RESCALE, OFT_BLOCKS),
    *(HADA_W1_A, HADA_W1_B, HADA_W2_A, HADA_W2_B, HADA_T1, HADA_T2),
    *(LOKR_W1, LOKR_W2, LOKR_W1_A, LOKR_W1_B, LOKR_W2_A, LOKR_W2_B, LOKR_T2),
    *(GLORA_A1, GLORA_A2, GLORA_B1, GLORA_B2),
)
_LOW_RANK = re.compile(
    r"(?:[._]lora[._](?P<name>up|down)"  # kohya; diffusers' attention processors
    r"|\.lora_(?P<letter>[AB])(?:\.[\w-]+)??"  # PEFT, with or without an adapter's name
    r"|\.lora_linear_layer\.(?P<old>up|down))"  # old diffusers
    r"(?:\.(?P<kind>weight|bias))?"
)
_MAGNITUDE = re.compile(re.escape(PEFT_MAGNITUDE) + r"(?:\.[\w-]+)??(?:\.weight)?")


@lru_cache(maxsize=2**16)  # called for each key of each file several times; the LoRAs of a graph share their keys
def split_key(key: str) -> tuple[str, str]:
    """(layer, part) of a key in any program's spelling. The layer is spelled as it was, the part as above.

    A key that ends in no known part comes back whole, with the part `UNKNOWN`.
    """
    for part in _AS_THEY_ARE:
        if key.endswith(part):
            return key.removesuffix(part), part
    # From the last place on where a part's name may begin, as layers can have "lora" in their own names.
    at = max(key.rfind(".lora_"), key.rfind("_lora."), key.rfind(".lora."))
    if at > 0:
        if found := _LOW_RANK.fullmatch(key, at):
            up = (found["name"] or found["letter"] or found["old"]) in ("up", "B")
            if found["kind"] == "bias":  # no program writes one of the down factor
                return (key[:at], PEFT_UP_BIAS) if up else (key, UNKNOWN)
            return key[:at], UP if up else DOWN
        if _MAGNITUDE.fullmatch(key, at):
            return key[:at], DORA_SCALE
    return key, UNKNOWN


def is_peft_magnitude(key: str) -> bool:
    """Whether a key is PEFT's name for DoRA's magnitude."""
    return PEFT_MAGNITUDE in key


# The parts that a training writes, by the kind of adapter.
TRAINED_PARTS: Mapping[str, tuple[str, ...]] = {
    "LoRA": (UP, DOWN, ALPHA),
    "DoRA": (UP, DOWN, ALPHA, DORA_SCALE),
    "LoKr": (LOKR_W1, LOKR_W2, LOKR_W2_A, LOKR_W2_B, ALPHA),
    "LoHa": (HADA_W1_A, HADA_W1_B, HADA_W2_A, HADA_W2_B, ALPHA),
}


def layer_and_part(key: str) -> tuple[str, str]:
    """("diffusion_model....to_k", ".lora_up.weight") of a key that ends in a part of any adapter.

    Raises `InputError` for a key that ends in none.
    """
    layer, part = split_key(key)
    if part == UNKNOWN:
        raise InputError(f"the LoRA holds {key!r}, which is part of no adapter; save it with ComfyUI's own node")
    return layer, part


def trained_kind(keys: Iterable[str]) -> str:
    """The kind of adapter that a training here has made, a key of `TRAINED_PARTS`; "LoRA" for no keys."""
    found = {split_key(key)[1] for key in keys}
    return next((kind for part, kind in _ONLY_IN.items() if part in found), "LoRA")


_ONLY_IN = {HADA_W1_A: "LoHa", LOKR_W1: "LoKr", DORA_SCALE: "DoRA"}  # a part that the other kinds have not


def layers_of(lora: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{layer: {part: tensor}} in the file's order; a key that is no part of a LoRA is a layer with part `UNKNOWN`."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in lora.items():
        layer, part = split_key(key)
        layers.setdefault(layer, {})[part] = tensor
    return layers


def adapts(parts: Iterable[str]) -> bool:
    """Whether a layer with these parts is changed by any of them: by more than an alpha and unknown keys."""
    return bool(set(parts) - {UNKNOWN, ALPHA})

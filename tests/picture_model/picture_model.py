"""The picture model: a checkpoint in SD1.5's layout that draws figures with moods in scenes at 128x128.

* Text encoder: CLIP-L's layout, embeddings from a seed as in `tests/small_model/model.py`, and layers whose output
  projections are zero: the state of a token is the normalised sum of its embedding and its place's, so that `Text`
  computes it without the layers.
* VAE: TAESD's layout, see `vae.py`.
* U-Net: SD1.5's class with three levels, attention at the second and in the middle. ComfyUI reads SD1.5 from 320
  channels, so the U-Net is stored at 160 (`NARROW`) and `widen` doubles every channel: copies side by side stay within
  one group of each group norm, weights that read two copies are halved, and queries are divided by sqrt(2) for the
  doubled dot product, so that the wide U-Net computes the narrow one's function exactly.

The module needs numpy and torch alone, and no ComfyUI.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
ASSET = HERE / "picture_model.safetensors"
RECIPE = 1  # increased when the written file changes; part of the cached file's name
BITS = 5  # of a stored weight of the U-Net

NARROW = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 160,
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 0],
    "transformer_depth_output": [0, 0, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "channel_mult": [1, 1, 2],
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
    "adm_in_channels": None,
}
WIDE = {**NARROW, "model_channels": 320}


def _small_model():
    """tests/small_model/model.py, under a name of its own."""
    name = "bespoke_small_model"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE.parent / "small_model" / "model.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


# --- text ---------------------------------------------------------------------------------------------------------


def clip_state_dict() -> dict[str, torch.Tensor]:
    """The small model's CLIP-L with zero output projections in all layers, fp16."""
    sd = _small_model().clip_state_dict()
    for name, weight in sd.items():
        if name.endswith(("self_attn.out_proj.weight", "mlp.fc2.weight")):
            weight.zero_()
    return sd


class Text:
    """Text states [B, 77, 768] of captions; the same as ComfyUI's CLIP of the checkpoint. Needs ComfyUI's tokenizer."""

    def __init__(self) -> None:
        from comfy.sd1_clip import SD1Tokenizer

        small = _small_model()
        self.tokens, self.places = (small.embedding(kind).float() for kind in ("token", "position"))
        self.tokenizer, self.ids = SD1Tokenizer(), {}

    def __call__(self, texts: list[str]) -> torch.Tensor:
        for text in texts:
            if text not in self.ids:
                tokens = self.tokenizer.tokenize_with_weights(text)["l"]
                if len(tokens) != 1:
                    raise ValueError(f"the caption {text!r} is longer than 75 tokens")
                self.ids[text] = torch.tensor([int(token) for token, _ in tokens[0]])
        states = torch.stack([self.tokens[self.ids[text]] + self.places for text in texts])
        return torch.nn.functional.layer_norm(states, (states.shape[-1],))


# --- U-Net: narrow to wide ----------------------------------------------------------------------------------------


def widen(narrow: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The wide U-Net's state dict of a narrow one's: every channel twice, side by side, and the same function."""
    return {name: _widened(name, weight.float()) for name, weight in narrow.items()}


def _widened(name: str, weight: torch.Tensor) -> torch.Tensor:
    if name != "out.2.weight" and name != "out.2.bias":
        weight = weight.repeat_interleave(2, 0)
    if weight.ndim == 1:
        return weight
    if name == "time_embed.0.weight":
        # The narrow sinusoids are the even ones of the wide: frequencies 10000^(-i / 80) and 10000^(-i / 160).
        out = weight.new_zeros(weight.shape[0], 2 * weight.shape[1])
        out[:, ::2] = weight
        return out
    reads_pictures = name == "input_blocks.0.0.weight"
    reads_text = ".attn2.to_k." in name or ".attn2.to_v." in name
    if not (reads_pictures or reads_text):
        weight = weight.repeat_interleave(2, 1) / 2
    # The wide head has twice the dimensions: q.k doubles, and the scale 1/sqrt(d) loses sqrt(2) alone.
    return weight / math.sqrt(2) if ".to_q." in name else weight


# --- the asset ----------------------------------------------------------------------------------------------------


def pack(narrow: dict[str, torch.Tensor], vae: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write the narrow U-Net at BITS bits and the VAE's halves, unwidened, in fp16 to one file."""
    out, shapes = _small_model().quantised(narrow, BITS)
    out = {f"unet.{k}": v for k, v in out.items()} | {f"vae.{k}": v.half() for k, v in vae.items()}
    note = {**metadata, "shapes": json.dumps(shapes), "bits": str(BITS)}
    save_file({k: v.contiguous() for k, v in out.items()}, path, metadata=note)


def unpack(path: Path = ASSET) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(the narrow U-Net, the VAE's halves) of the asset, fp16."""
    parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "vae": {}}
    with safe_open(path, "pt") as file:
        note = file.metadata()
        for name in list(file.keys()):
            part, rest = name.split(".", 1)
            parts[part][rest] = file.get_tensor(name)
    return _small_model().restored(parts["unet"], json.loads(note["shapes"]), int(note["bits"])), parts["vae"]


def write_checkpoint(
    path: Path, narrow: dict[str, torch.Tensor] | None = None, vae_halves: dict[str, torch.Tensor] | None = None
) -> Path:
    """Write the whole checkpoint (CLIP, VAE in TAESD's layout, wide U-Net in fp16), through a temporary name.

    Without weights, those of the asset are taken. About 430 MB.
    """
    import vae

    if narrow is None or vae_halves is None:
        narrow, vae_halves = unpack()
    halves = vae.Narrow()
    halves.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in vae_halves.items()})
    sd = {f"model.diffusion_model.{k}": v.half() for k, v in widen(narrow).items()}
    sd |= clip_state_dict() | vae.state_dict_of(halves)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({k: v.contiguous() for k, v in sd.items()}, part, metadata={"modelspec.title": "Bespoke picture model"})
    part.replace(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack a training into the asset, or expand the asset.")
    parser.add_argument("out", type=Path, help="the file to write: the asset with --state, else the checkpoint")
    parser.add_argument("--state", type=Path, help="state.pt of picture_train.py")
    parser.add_argument("--vae", type=Path, help="vae.pt of vae.py")
    args = parser.parse_args()
    if args.state is None:
        print(write_checkpoint(args.out))
        return
    state = torch.load(args.state, weights_only=True)
    note = {"steps": str(state["done"]), "torch": torch.__version__}
    pack(state["average"], torch.load(args.vae, weights_only=True)["model"], args.out, note)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB after {state['done']} steps")


if __name__ == "__main__":
    main()

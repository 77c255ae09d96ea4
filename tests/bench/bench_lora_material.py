"""What the small model draws with LoRAs that are put together or masked: counted over 24 seeds.

    python3 dev.py test -m bench tests/bench/bench_lora_material.py -s

A colour (teal) and a shape (heart) that the model has never seen are trained as LoRAs of their own. The first table
says in how many pictures of a teal heart both are shown: with each LoRA alone, with their sum, and with `balance`,
`ties` and `dare` of Compose LoRAs. The second says how many pictures of a circle are teal on the left and not on the
right, with the colour's LoRA under a mask of the left half, against ComfyUI's own hooks, which compute the whole model
once with the LoRA and once without and mask the predictions. The judge measures hue and silhouette.

BESPOKE_BENCH_STEPS (300) shortens the trainings, BESPOKE_BENCH_RATE (2e-3) is their learning rate, BESPOKE_BENCH_COUNT
(24) the number of pictures. BESPOKE_BENCH_KEEP names a folder where LoRAs and pictures stay between runs: what is there
is not made again. On one core a LoRA takes two minutes and 24 pictures more than half a minute.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]

STEPS, COUNT = int(os.environ.get("BESPOKE_BENCH_STEPS", 300)), int(os.environ.get("BESPOKE_BENCH_COUNT", 24))
SAMPLING = 8  # steps of the sampler
KEEP = os.environ.get("BESPOKE_BENCH_KEEP")
SETTINGS = {
    "learning_rate": float(os.environ.get("BESPOKE_BENCH_RATE", 2e-3)),
    "rank": 8,
    "alpha": 8.0,
    "warmup_steps": min(10, STEPS // 2),
    "ema": 0.95,
    "timestep_sampling": "shifted",
    "loss_weighting": "debiased",
    "batch_size": 4,
    "resume": False,
}
MIXED = 0.7  # the strength of the colour in the shape's LoRA of the overlapping pair
TRAITS = {"teal": {"colour": "teal"}, "heart": {"shape": "heart"}, "purple": {"colour": "purple"}}


def trained(small, run_node, name: str) -> dict[str, torch.Tensor]:
    """The LoRA of a set of 12 pictures."""
    from helpers import sprite_set

    path = Path(KEEP or ".") / f"material-{name}-{STEPS}-{SETTINGS['learning_rate']:g}.safetensors"
    if KEEP and path.is_file():
        return safetensors.torch.load_file(path)
    model, clip, vae = small
    images = sprite_set(7, 12, **TRAITS[name])
    _, lora, *_ = run_node(
        "BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, seed=1, steps=STEPS, **SETTINGS
    )
    if KEEP:
        safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in lora.items()}, path)
    return dict(lora)


def kept(name: str, draw):
    """The pictures that `draw` makes; those in the folder of BESPOKE_BENCH_KEEP where they are there."""
    from PIL import Image

    path = Path(KEEP or ".") / f"{name}, {STEPS}-{SETTINGS['learning_rate']:g}.png"
    if KEEP and path.is_file():
        sheet = Image.open(path).convert("RGB")
        return [sheet.crop((128 * i, 0, 128 * i + 128, 128)) for i in range(COUNT)]
    found = draw()
    if KEEP:
        sheet = Image.new("RGB", (128 * COUNT, 128))
        for i, picture in enumerate(found):
            sheet.paste(picture, (128 * i, 0))
        sheet.save(path)
    return found


def pictures(small, run_node, lora, prompt: str, **changes):
    """lora: None for the base. changes: further inputs of Inject LoRA."""
    from helpers import sample

    model, clip, vae = small
    if lora is not None:
        given = {"model": model, "lora": lora, "lora_name": "none", "strength_model": 1.0}
        model = run_node("BespokeInjectLora", **given | changes)[0]
    return sample(run_node, model, clip, vae, [prompt], COUNT, steps=SAMPLING)


def test_a_colour_and_a_shape(small, run_node):
    """Each alone, both put together, and a pair that overlaps: the shape's LoRA with a part of the colour's in it."""
    from judge import judge

    loras = {name: trained(small, run_node, name) for name in ("teal", "heart")}

    def composed(one, other, **inputs):
        lora, report, _ = run_node("BespokeComposeLoras", loras={"lora0": one, "lora1": other}, **inputs)
        print("\n".join(line for line in report.splitlines() if "osine" in line or "alance" in line))
        return lora

    pair, together = (loras["teal"], loras["heart"]), "a teal heart on white"
    mixed = composed(loras["heart"], loras["teal"], strengths=f"1\n{MIXED}")
    overlapping = (loras["teal"], mixed)
    ways = {
        "heart alone, red": (loras["heart"], "a red heart on white"),
        "sum": (composed(*pair), together),
        "overlapping, sum": (composed(*overlapping), together),
        "overlapping, balance": (composed(*overlapping, method="balance"), together),
        "ties, 2 each": (composed(*pair, method="ties", strengths="2\n2"), together),
        "balance": (composed(*pair, method="balance"), together),
        "dare, density 0.8": (composed(*pair, method="dare", density=0.8), together),
        "teal alone": (loras["teal"], together),
        "heart alone": (loras["heart"], together),
        "teal alone, a circle": (loras["teal"], "a teal circle on white"),
        "the base": (None, together),
    }
    print(f"\n{together:24} {'teal':>5} {'heart':>6} {'both':>5}  of {COUNT}")
    for name, (lora, prompt) in ways.items():
        drawn = kept(name, lambda lora=lora, prompt=prompt: pictures(small, run_node, lora, prompt))
        found = [judge(picture) for picture in drawn]
        teal = np.array([verdict.colour == "teal" for verdict in found])
        heart = np.array([verdict.shape == "heart" for verdict in found])
        print(f"{name:24} {teal.sum():5} {heart.sum():6} {(teal & heart).sum():5}", flush=True)


def test_balance_of_three_trained_loras(small, run_node):
    """Each one's projection in the sum, from the whole matrices: 1 within 1e-3 by balance."""
    from bespoke.nodes.lora import kinds
    from bespoke.training.layer_names.parts import layers_of

    def changes(lora):
        out = {}
        for layer, parts in layers_of(lora).items():
            made = kinds.factors(layer, parts)
            out[layer] = (made.up @ made.down).double()
        return out

    loras = [trained(small, run_node, name) for name in TRAITS]
    wired = {f"lora{i}": lora for i, lora in enumerate(loras)}
    print(f"\n{'own effect':12} " + " ".join(f"{name:>8}" for name in TRAITS))
    for method in ("sum", "balance"):
        total = changes(run_node("BespokeComposeLoras", loras=wired, method=method)[0])
        effects = []
        for lora in loras:
            own = changes(lora)
            square = sum(float(change.square().sum()) for change in own.values())
            effects.append(sum(float((total[layer] * change).sum()) for layer, change in own.items()) / square)
        print(f"{method:12} " + " ".join(f"{effect:8.4f}" for effect in effects))
        if method == "balance":
            assert all(abs(effect - 1) < 1e-3 for effect in effects)


def halves(picture) -> tuple[str | None, str | None]:
    """The names of the figure's colours in the left and the right half."""
    from judge import colour_name, silhouette

    mask, _ = silhouette(picture)
    rgb, middle = np.asarray(picture.convert("RGB"), float), picture.width // 2
    sides = []
    for part in (slice(0, middle), slice(middle, None)):
        inside = rgb[:, part][mask[:, part]]
        sides.append(colour_name(np.median(inside, axis=0)) if len(inside) > 30 else None)
    return sides[0], sides[1]


def test_teal_on_the_left(small, run_node, comfyui):
    lora, prompt = trained(small, run_node, "teal"), "a teal circle on white"
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1.0
    ways = {
        "Inject LoRA with the mask": lambda: pictures(small, run_node, lora, prompt, mode="bypass", mask=mask),
        "ComfyUI's hooks": lambda: _by_hooks(small, run_node, comfyui, lora, prompt, mask),
        "the LoRA, without a mask": lambda: pictures(small, run_node, lora, prompt),
        "the base": lambda: pictures(small, run_node, None, prompt),
    }
    print(f"\n{prompt:28} {'left teal':>9} {'right teal':>10} {'left only':>9}  of {COUNT}")
    for name, draw in ways.items():
        sides = [halves(picture) for picture in kept(f"left, {name}", draw)]
        left, right = (np.array([side[i] == "teal" for side in sides]) for i in (0, 1))
        print(f"{name:28} {left.sum():9} {right.sum():10} {(left & ~right).sum():9}", flush=True)


def _by_hooks(small, run_node, comfyui, lora, prompt, mask):
    """The same with core's nodes: the prompt with a hooked LoRA under the mask, the prompt under its inverse."""
    from PIL import Image

    model, clip, vae = small
    safetensors.torch.save_file(
        {key: tensor.contiguous() for key, tensor in lora.items()}, comfyui / "models" / "loras" / "hooked.safetensors"
    )
    (hooks,) = run_node("CreateHookLoraModelOnly", lora_name="hooked.safetensors", strength_model=1.0)
    (plain,) = run_node("CLIPTextEncode", clip=clip, text=prompt)
    (negative,) = run_node("CLIPTextEncode", clip=clip, text="")
    area = {"strength": 1.0, "set_cond_area": "default"}
    (left,) = run_node("ConditioningSetProperties", cond_NEW=plain, mask=mask, hooks=hooks, **area)
    (both,) = run_node("ConditioningSetPropertiesAndCombine", cond=left, cond_NEW=plain, mask=1 - mask, **area)
    (latent,) = run_node(
        "KSampler",
        model=model,
        seed=1,
        steps=SAMPLING,
        cfg=2.0,
        sampler_name="euler",
        scheduler="normal",
        positive=both,
        negative=negative,
        latent_image={"samples": torch.zeros(COUNT, 4, 16, 16)},
        denoise=1.0,
    )
    (pixels,) = run_node("VAEDecode", vae=vae, samples=latent)
    return [Image.fromarray((p.cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)) for p in pixels]

"""What several tests need: hashes, sampling with core's nodes, sets of sprites."""

from __future__ import annotations

import hashlib

import numpy as np
import sprites
import torch
from bespoke.nodes.images.folder import fingerprint
from bespoke.training.images import ImageSet, TrainingImage
from judge import judge
from PIL import Image


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over the name and the bytes of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sprite_set(seed: int, count: int, word: str | None = None, side: int = 128, **kind) -> ImageSet:
    """`count` sprites that share a colour or a shape, captioned; `word` stands in for the shared one. side: px."""
    pairs = sprites.training_set(np.random.default_rng(seed), count, **kind)
    shared = next(iter(kind.values()))
    items = [
        TrainingImage(f"sprite {i}", torch.from_numpy(np.array(image.resize((side, side), Image.NEAREST))), text.replace(shared, word or shared))
        for i, (image, text) in enumerate(pairs)
    ]
    return ImageSet(tuple(items), "", fingerprint(items))


def sample(run_node, model, clip, vae, prompts, count, cfg=2.0, steps=16, seed=1) -> list[Image.Image]:
    """`count` pictures a prompt, with core's CLIPTextEncode, KSampler and VAEDecode only."""
    (negative,) = run_node("CLIPTextEncode", clip=clip, text="")
    out = []
    for prompt in prompts:
        (positive,) = run_node("CLIPTextEncode", clip=clip, text=prompt)
        (latent,) = run_node(
            "KSampler", model=model, seed=seed, steps=steps, cfg=cfg, sampler_name="euler", scheduler="normal",
            positive=positive, negative=negative, latent_image={"samples": torch.zeros(count, 4, 16, 16)}, denoise=1.0,
        )  # fmt: skip
        (pixels,) = run_node("VAEDecode", vae=vae, samples=latent)
        out += [Image.fromarray((p.cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)) for p in pixels]
    return out


def share(pictures, **wanted) -> float:
    """The share of pictures that show what is wanted (colour=..., shape=...)."""
    verdicts = [judge(picture) for picture in pictures]
    return sum(all(getattr(v, k) == w for k, w in wanted.items()) for v in verdicts) / len(verdicts)

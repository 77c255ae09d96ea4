"""Two folders of pictures of the same names, as sets and combined, and the settings of a short training on them."""

from __future__ import annotations

from dataclasses import replace

import torch
from bespoke.nodes.images.combination.combine import combine
from bespoke.nodes.images.folder import fingerprint
from bespoke.training.images import ImageSet
from helpers import sprite_set

STEPS = 10
TRAIN = dict(
    steps=STEPS, batch_size=2, rank=2, alpha=2.0, optimizer="SGD", learning_rate=0.2, precision="fp32", seed=7,
    targets="custom", custom_targets="*attn.qkv, *x_block.attn.qkv : 3 : 1.5", rank_dropout=0.2, module_dropout=0.1,
    max_norm=0.3,
)  # fmt: skip
WEIGHTS, RESOLUTIONS = "2.5\n1", "64, 128"


def folder(source: str, seed: int, count: int, side: int, trigger: str) -> ImageSet:
    """`count` sprites of a folder: each with two further captions, every second one with a mask of its upper half."""
    items = []
    for i, item in enumerate(sprite_set(seed, count, side=side, colour="teal").items):
        mask = torch.zeros(side, side)
        mask[: side // 2] = 1
        items.append(
            replace(
                item,
                name=f"{i}.png",
                caption=f"{trigger} {item.caption}",
                more_captions=(f"{trigger} again {i}", f"{trigger} (3) {i}"),
                mask=mask if i % 2 else None,
                original=(2 * side, 3 * side),
                crop=(0, side // 4),
                trigger=trigger,
                source=source,
            )
        )
    return ImageSet(tuple(items), trigger, fingerprint(items))


def two_folders() -> dict[str, ImageSet]:
    """2 pictures of 128 px and 3 of 64 px, by the names of their sockets."""
    return {"set0": folder("cats", 1, 2, 128, "tok cat"), "set1": folder("dogs", 2, 3, 64, "tok dog")}


def combined_set() -> ImageSet:
    return combine(two_folders(), WEIGHTS, resolutions=RESOLUTIONS).images

"""The record of a training run: what was asked, what happened, what came out."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# What may change between two requests that are still the same run, only longer or watched more closely.
NOT_IDENTITY = frozenset({"steps", "save_every", "sample_every", "sample_prompt", "keep"})


def run_id(technique: str, settings: dict[str, Any], images: str, base: str) -> str:
    """A short name for a run: equal for equal requests, whatever their number of steps."""
    identity = {k: v for k, v in sorted(settings.items()) if k not in NOT_IDENTITY}
    text = json.dumps([technique, identity, images, base], default=str)
    return f"{technique.replace(' ', '-')}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


@dataclass
class Run:
    """What `BESPOKE_RUN` carries.

    technique: "lora" or "textual inversion". settings: the request, by widget name. base: the model's name.
    trained: how many numbers were trained. names: what files call each trained layer, by format.
    """

    id: str
    technique: str
    settings: dict[str, Any]
    base: str
    images: int
    trigger: str = ""
    tags: dict[str, int] = field(default_factory=dict)
    resolution: str = ""
    prediction: str = ""
    trained: int = 0
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    state: str = "running"
    started: float = field(default_factory=time.time)


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How often each comma-separated tag occurs in the captions, as `ss_tag_frequency` counts."""
    return dict(Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()))

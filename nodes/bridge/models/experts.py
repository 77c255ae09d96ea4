"""Models that are one of several experts: each denoises only a part of the noise levels, and is trained on that part.

Wan 2.2's 14B model is two networks of one shape, which is also that of Wan 2.1's: the high-noise expert denoises while
the noise level is at least a boundary, then the low-noise expert takes over. Their weights do not say which one they
are; their files' names do. The boundary is that of the official configurations, of the noise levels after the shift:
`boundary` is 0.875 in `wan_t2v_A14B.py` and 0.900 in `wan_i2v_A14B.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ....training.timestep_range import TimestepRange
from . import wan

BOUNDARY = 0.875  # of Wan 2.2 T2V A14B
BOUNDARY_OF_PICTURES = 0.9  # of Wan 2.2 I2V A14B
LARGE_WIDTH = 5120  # of the 14B models
_NOISE = re.compile(r"(?<![a-z])(high|low)[-_. ]?noise(?![a-z])")
_WORD = re.compile(r"(?<![a-z])(high|low)(?![a-z])")
_VERSION = re.compile(r"wan[-_. ]?2[-_. ]?2(?!\d)")


@dataclass(frozen=True)
class NoiseRange(TimestepRange):
    """The noise levels that a model is trained on: those of `low` <= sigma < `high`, and the highest where `high` is 1.

    note: for the report, which expert it is and how that was told, or that it could not be told; "" for most models.
    expert: "high-noise" or "low-noise"; "" for most models.
    """

    note: str = ""
    expert: str = ""


def noise_range(diffusion_model: Any, path: PurePath | None) -> NoiseRange:
    """The noise levels of a model. path: the file that it was loaded from, None where ComfyUI does not know it."""
    if not wan.fits(diffusion_model):
        return NoiseRange()
    expert = _expert(path)
    name = path.name if path is not None else ""
    boundary = BOUNDARY_OF_PICTURES if wan.continues_pictures(diffusion_model) else BOUNDARY
    if expert == "high":
        return NoiseRange(boundary, 1.0, _found("high-noise", name, f"from {boundary:g} up"), "high-noise")
    if expert == "low":
        return NoiseRange(0.0, boundary, _found("low-noise", name, f"below {boundary:g}"), "low-noise")
    version = _VERSION.search(name.lower())
    if diffusion_model.dim >= LARGE_WIDTH and (version or not name or "2.1" not in name.replace("_", ".")):
        return NoiseRange(
            note=(
                f"Trained on all noise levels, as for Wan 2.1. If this is an expert of Wan 2.2 14B, its file's name "
                f"({name or 'not known'}) does not say which: name it with high_noise or low_noise, or set "
                f"min_timestep to {boundary:g} for the high-noise expert and max_timestep to {boundary:g} for the "
                "low-noise one, and train again on that expert's part only."
            )
        )
    return NoiseRange()


def _found(expert: str, name: str, levels: str) -> str:
    return (
        f"By its file's name ({name}) the model is Wan 2.2's {expert} expert, so it was trained on its part alone: "
        f"noise levels {levels}, of 1. Train a second LoRA on the other expert for the rest."
    )


def _expert(path: PurePath | None) -> str:
    """ "high" or "low" from the name of the file, or of its folder as in `high_noise_model/`; "" where both or none."""
    if path is None:
        return ""
    for name in (path.name, path.parent.name):
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()  # HighNoise
        found = set(_NOISE.findall(text))
        if found or _VERSION.search(text):
            found |= set(_WORD.findall(text))
        if found:
            return found.pop() if len(found) == 1 else ""
    return ""

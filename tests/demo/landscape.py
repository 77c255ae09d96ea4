"""A drawn landscape for the pictures of the help pages: sky, hills, a lake and a balloon, all by formula."""

from __future__ import annotations

import numpy as np
from PIL import Image


def draw(width: int, height: int, seed: int = 4) -> Image.Image:
    """The landscape as an RGB picture. The balloon is an ellipse at 65 % of the width and 40 % of the height."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    u, v = x / width, y / height
    colour = _mix((0.36, 0.56, 0.82), (0.99, 0.82, 0.62), np.clip(v / 0.62, 0, 1) ** 1.3)
    sun = np.exp(-((u - 0.22) ** 2 * (width / height) ** 2 + (v - 0.34) ** 2) / 0.01)
    colour += sun[..., None] * np.array((0.35, 0.26, 0.05))
    rng = np.random.default_rng(seed)
    for base, rough, near, far in (
        (0.52, 0.16, (0.42, 0.50, 0.63), (0.60, 0.62, 0.68)),
        (0.62, 0.12, (0.26, 0.42, 0.40), (0.38, 0.52, 0.46)),
        (0.74, 0.07, (0.16, 0.30, 0.20), (0.30, 0.46, 0.22)),
    ):
        edge = base + _ridge(u[0], rough, rng)
        depth = np.clip((v - edge) / 0.25, 0, 1)
        hill = _mix(far, near, depth) + 0.035 * _grain(width, height, rng)[..., None]
        cover = np.clip((v - edge) * height, 0, 1)[..., None]
        colour = colour * (1 - cover) + hill * cover
    colour = _balloon(colour, u, v, width / height)
    return Image.fromarray((np.clip(colour, 0, 1) * 255).round().astype(np.uint8))


def balloon_mask(width: int, height: int) -> np.ndarray:
    """[height, width], 1 on the balloon and its basket and a little around them, else 0."""
    y, x = np.mgrid[0:height, 0:width]
    across, down = (x / width - 0.65) * width / height / 0.21, (y / height - 0.42) / 0.29
    return (across**2 + down**2 < 1).astype(np.float32)


def _mix(first, second, share: np.ndarray) -> np.ndarray:
    return np.array(first) * (1 - share[..., None]) + np.array(second) * share[..., None]


def _ridge(u: np.ndarray, rough: float, rng) -> np.ndarray:
    """A line of random waves, coarse and fine."""
    return sum(rough / 2**octave * np.sin(2 * np.pi * (2**octave * u * 0.8 + rng.random())) for octave in range(6))


def _grain(width: int, height: int, rng) -> np.ndarray:
    """Random texture of three sizes, of variance 1 about."""
    out = np.zeros((height, width))
    for step in (1, 3, 7):
        small = rng.standard_normal((-(-height // step), -(-width // step)))
        out += np.kron(small, np.ones((step, step)))[:height, :width] / 3**0.5
    return out


def _balloon(colour: np.ndarray, u: np.ndarray, v: np.ndarray, aspect: float) -> np.ndarray:
    across, down = (u - 0.65) * aspect, v - 0.38
    radius = np.sqrt(across**2 + (down * np.where(down > 0, 0.82, 1.0)) ** 2)
    stripes = np.where(np.floor(across / np.sqrt(np.clip(0.17**2 - down**2, 1e-4, None)) * 3.5 + 0.5) % 2 == 0, 1, 0)
    cloth = _mix((0.95, 0.85, 0.62), (0.78, 0.16, 0.20), stripes.astype(float))
    cloth *= (1.05 - 1.6 * np.clip(across + down * 0.6, -0.15, 0.3))[..., None]
    colour = np.where((radius < 0.16)[..., None], cloth, colour)
    basket = (np.abs(across) < 0.03) & (np.abs(v - 0.645) < 0.025)
    ropes = (np.abs(np.abs(across) - 0.026 - (0.62 - v) * 0.25) < 0.003) & (v > 0.55) & (v < 0.625)
    return np.where(basket[..., None], (0.38, 0.24, 0.14), np.where(ropes[..., None], (0.3, 0.2, 0.15), colour))

"""Frames and latent frames: which picture frames each latent frame of a film holds.

A video model's VAE packs frames: the first latent frame holds one picture frame, each later one a group of them (four
for Wan and Hunyuan Video, six for Mochi, eight for LTX and Cosmos).
"""

from __future__ import annotations

CHUNKED = {"MiniMaxH3Video": 5, "MiniMaxH3AV": 5}  # latent formats whose VAE packs chunks; latent frames of a chunk


def frame_groups(latent_frames: int, temporal: int, chunk: int = 0) -> tuple[int, ...]:
    """The number of picture frames in each latent frame: (1, 4, 4) of three latent frames where `temporal` is 4.

    temporal: picture frames to a latent frame. chunk: latent frames after which a VAE starts again with a single frame;
    0 if it does not.
    """
    return tuple(1 if t == 0 or (chunk and t % chunk == 0) else temporal for t in range(latent_frames))

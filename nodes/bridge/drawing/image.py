"""A picture as ComfyUI's IMAGE."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def tensor_of(picture: Image.Image) -> Tensor:
    """[1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB")))[None].float() / 255

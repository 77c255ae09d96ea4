"""The small model's world in a U-Net of a tenth of its size, for benchmarks that need hundreds of trainings' steps.

The same classes, CLIP, VAE and pictures; 96 channels where the small model has 320. It is trained when it is first
asked for, in about ten minutes on two quiet cores, and kept in the cache folder.
"""

from __future__ import annotations

from pathlib import Path

import torch

CHANNELS = 96
RECIPE = 1  # raised when the file that comes out changes: part of the cached file's name


def checkpoint(cache: Path) -> Path:
    """The checkpoint's path; the file is made where it is missing. ComfyUI must have been started."""
    import model as small
    import train as small_training

    path = cache / f"bespoke-mini-{RECIPE}.safetensors"
    if path.is_file():
        return path
    import comfy.sd

    device, work = torch.device("cpu"), cache / "mini"
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(small_training.SEED)
    unet = small_training.new_unet(device, small.UNET_CONFIG | {"model_channels": CHANNELS})
    blank = small.write_checkpoint(work / "untrained.safetensors", unet.state_dict())
    _, clip, _, _ = comfy.sd.load_checkpoint_guess_config(str(blank), output_model=False)
    stage = small_training.Stage(1500, 1.5e-3, 100, 0.99, anywhere=False)
    trained = small_training.train_stage(1, stage, unet, small_training.Captions(clip), device, work)
    small.write_checkpoint(path, trained.state_dict())
    for file in work.iterdir():
        file.unlink()
    work.rmdir()
    return path

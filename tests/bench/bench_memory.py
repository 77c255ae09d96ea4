"""The memory of a LoRA training step on a card, at the models' real sizes, by the forecast of the node.

    python3 dev.py test -m bench tests/bench/bench_memory.py -s

ComfyUI's own classes in their released configurations, without weights: no card is needed and none is measured. The
allocations of a step's operations are counted exactly. Not counted is what a card's kernels, its allocator and its
driver use; the nodes leave ComfyUI's reserve free for it. tests/comfy/test_memory.py compares the same forecast with
real steps.
"""

import full_size
import pytest
import torch
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter

pytestmark = pytest.mark.bench
CPU = torch.device("cpu")
# name, configuration, type of the weights, type they are cast to, of autocast; tokens, width, pooled width, latent
# channels
CASES = [
    ("SDXL, fp16 weights", full_size.SDXL, torch.float16, None, torch.bfloat16, (77, 2048, 1280, 4)),
    ("SDXL, bf16 weights", full_size.SDXL, torch.bfloat16, None, None, (77, 2048, 1280, 4)),
    ("Flux 12B, bf16 weights", full_size.FLUX, torch.bfloat16, None, None, (256, 4096, 768, 16)),
    ("Flux 12B, fp8 weights", full_size.FLUX, torch.float8_e4m3fn, torch.bfloat16, None, (256, 4096, 768, 16)),
]
PIXELS, RANK = 1024, 16


def model_of(config: dict, dtype, manual):
    import comfy.model_base
    import comfy.supported_models

    name = "Flux" if config is full_size.FLUX else "SDXL"
    known = getattr(comfy.supported_models, name)(config | {"dtype": dtype})
    known.set_inference_dtype(dtype, manual, device=CPU)
    return getattr(comfy.model_base, name)(known, device=torch.device("meta"))


def forecast(base, compute, saving: bool, tokens: int, width: int, pooled: int, channels: int):
    from bespoke.nodes.bridge.dataset import conditioning
    from bespoke.nodes.bridge.models import target_layers
    from bespoke.nodes.bridge.training_model import memory_forecast

    latent, made = torch.empty(1, channels, PIXELS // 8, PIXELS // 8), []
    one = conditioning.model_conds(
        base, torch.zeros(1, tokens, width), {"pooled_output": torch.zeros(1, pooled)}, latent, CPU
    )

    def learn():
        layers = target_layers(base.diffusion_model, "cross-attention")
        made.append(AdapterSet(LoraAdapter, layers, AdapterConfig(RANK, RANK, 0), CPU))
        return list(made[0].parameters())

    return memory_forecast.forecast(
        base, latent, one, learn, compute, saving, memory_forecast.OPTIMIZER_BYTES["AdamW"], lambda: made[0].attached()
    )


def test_memory_of_a_step(comfyui):
    print(f"\nLoRA of rank {RANK} on the cross-attention, batch 1, {PIXELS} px, AdamW; GB (1e9 bytes)")
    print(
        f"{'model':24} {'checkpointing':13} {'weights':>8} {'kept':>6} {'step':>6} {'learned':>7} {'peak':>6} "
        f"{'peak, weights offloaded':>24}"
    )
    peaks = {}
    for name, config, dtype, manual, compute, shapes in CASES:
        base = model_of(config, dtype, manual)
        for saving in (False, True):
            step = forecast(base, compute, saving, *shapes)
            peaks[name, saving] = (step.peak() / 1e9, step.peak(offload=True) / 1e9)
            numbers = [value / 1e9 for value in (step.weights, step.kept, step.step, step.trained)]
            print(
                f"{name:24} {'on' if saving else 'off':13} "
                + "{:8.2f} {:6.2f} {:6.2f} {:7.2f}".format(*numbers)
                + " {:6.2f} {:24.2f}".format(*peaks[name, saving])
            )
    for name in ("SDXL, fp16 weights", "SDXL, bf16 weights"):
        assert min(peaks[name, True]) < 8 * 0.85  # of 8 GB, without the share of driver and desktop
    for name in ("Flux 12B, bf16 weights", "Flux 12B, fp8 weights"):
        assert min(peaks[name, True]) < 24 * 0.9

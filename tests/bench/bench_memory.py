"""What a LoRA training step takes of a card's memory at the models' real sizes, by the forecast that the node itself
makes.

    python3 dev.py test -m bench tests/bench/bench_memory.py -s

ComfyUI's own classes in their released configurations, without weights: no card is needed and none is measured. What
the
operations of a step allocate is counted exactly; what a card's kernels, its allocator and its driver take beside that
is
not (the nodes leave ComfyUI's reserve free for it). tests/comfy/test_memory.py holds the same forecast against real
steps.
"""

import pytest
import torch
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter

pytestmark = pytest.mark.bench
CPU = torch.device("cpu")
SDXL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
# name, configuration, type of the weights, type they are cast to, of autocast; tokens, width, pooled width, latent
# channels
CASES = [
    ("SDXL, fp16 weights", SDXL, torch.float16, None, torch.bfloat16, (77, 2048, 1280, 4)),
    ("SDXL, bf16 weights", SDXL, torch.bfloat16, None, None, (77, 2048, 1280, 4)),
    ("Flux 12B, bf16 weights", FLUX, torch.bfloat16, None, None, (256, 4096, 768, 16)),
    ("Flux 12B, fp8 weights", FLUX, torch.float8_e4m3fn, torch.bfloat16, None, (256, 4096, 768, 16)),
]
PIXELS, RANK = 1024, 16


def model_of(config: dict, dtype, manual):
    import comfy.model_base
    import comfy.supported_models

    name = "Flux" if config is FLUX else "SDXL"
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


def test_what_a_step_takes_of_the_memory(comfyui):
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
        assert min(peaks[name, True]) < 8 * 0.85  # of 8 GB, what is left beside driver and desktop
    for name in ("Flux 12B, bf16 weights", "Flux 12B, fp8 weights"):
        assert min(peaks[name, True]) < 24 * 0.9

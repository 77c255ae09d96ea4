"""Models, pictures and requests of the files in tests/samples_0_1, equal on every machine.

Weights and pixels come from whole-number arithmetic, since random normal numbers differ in their last bits between
processors, and a run's id and a base model's SHA-256 depend on every bit.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
from pathlib import Path

import numpy as np
import tiny
import torch

SAMPLES = Path(__file__).resolve().parents[1] / "samples_0_1"
WORKFLOW = {"id": "0f1e2d3c-0001-4000-8000-000000000001", "nodes": [{"id": 1, "type": "BespokeTrainLora"}], "links": []}
WORD = "old-word"
JOB_BASE = "samples-flux.safetensors"
# The requests of the runs: "finished" made all 6 steps, "interrupted" stopped after 3 and "kept" after 4.
LORA = dict(
    targets="custom",
    custom_targets="*attn2.to_k, *attn2.to_v",
    rank=1,
    alpha=1.0,
    learning_rate=1e-2,
    steps=6,
    batch_size=2,
    precision="fp32",
    lr_schedule="constant",
    ema=0.5,
)
SEEDS = {"finished": 101, "interrupted": 102, "kept": 103}
WORD_REQUEST = dict(
    name=WORD, init_text="red", vectors=2, learning_rate=1e-2, steps=6, batch_size=1, seed=104, precision="fp32"
)
JOB = dict(
    targets="custom",
    custom_targets="*double_blocks.0.img_attn*",
    rank=1,
    alpha=1.0,
    learning_rate=1e-2,
    steps=4,
    batch_size=1,
    precision="fp32",
    keep="last",
    seed=105,
)


def whole_numbers(count: int, seed: int) -> np.ndarray:
    """[count] whole numbers below 2**32 without a pattern: an integer hash of multiplications and shifts."""
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(seed * 40503 + 1)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        return x ^ (x >> np.uint32(16))


def fill(module: torch.nn.Module, seed: int) -> None:
    """Weights of about unit gain, each a fraction that float32 holds exactly."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(module.named_parameters()):
            parameter.requires_grad_(False)
            steps = torch.from_numpy(
                (whole_numbers(parameter.numel(), seed * 1000 + number) % 257).astype(np.int64) - 128
            )
            if parameter.ndim < 2:
                value = steps / 2048 + (1.0 if name.endswith("weight") else 0.0)
            else:
                value = steps / 128 * 2.0 ** round(math.log2(math.sqrt(3 / parameter[0].numel())))
            parameter.copy_(value.reshape(parameter.shape))


def vae(channels: int = 4):
    """A VAE of TAESD's classes."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    made = TAESD(latent_channels=channels)
    fill(made, 3)
    return comfy.sd.VAE(sd=made.state_dict(), metadata={"tae_latent_channels": channels})


def models():
    """(model, clip, vae) of SD1.5's classes, with one level of a U-Net."""
    model, clip = tiny.patcher(tiny.SMALLEST), tiny.clip()
    fill(model.model.diffusion_model, 1)
    fill(clip.cond_stage_model, 2)
    return model, clip, vae()


def job_models(base: Path):
    """(model, clip, vae) of Flux's classes; the model is loaded from a file that is written into ComfyUI's folder."""
    import comfy.sd
    from safetensors.torch import save_file

    # The sizes that ComfyUI's loader assumes.
    made, clip, _ = tiny.flux(hidden_size=128, num_heads=1, axes_dim=[16, 56, 56], depth=1, depth_single_blocks=1)
    fill(made.model.diffusion_model, 4)
    fill(clip.cond_stage_model, 5)
    path = base / "models" / "diffusion_models" / JOB_BASE
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in made.model.diffusion_model.state_dict().items()}, path)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path)), clip, vae(16)


def pictures(run_node, count: int, seed: int, captions: str = ""):
    """A training set of `count` pictures of 64x64 px, through Bespoke Image Batch."""
    pixels = whole_numbers(count * 8 * 8 * 3, seed).reshape(count, 8, 8, 3) % 256
    pixels = np.kron(pixels, np.ones((1, 8, 8, 1), np.uint32))
    return run_node(
        "BespokeImageBatch",
        images=torch.from_numpy(pixels.astype(np.float32)) / 255,
        captions=captions or "a red thing",
        trigger="",
    )[0]


def lora_request(run_node, which: str, **changes) -> dict:
    """The inputs of Bespoke Train LoRA of one of the kept runs."""
    model, clip, vae = models()
    images, validation = pictures(run_node, 3, 11, "a red thing\na thing, blue\nthing"), pictures(run_node, 2, 12)
    given = dict(model=model, clip=clip, vae=vae, images=images, validation_images=validation, seed=SEEDS[which])
    return given | LORA | changes


def word_request(run_node, **changes) -> dict:
    """The inputs of Bespoke Train Textual Inversion for the word."""
    model, clip, vae = models()
    return dict(model=model, clip=clip, vae=vae, images=pictures(run_node, 2, 13)) | WORD_REQUEST | changes


def machine() -> dict[str, str]:
    """What has to be equal for floating-point sums, and so every bit of a training, to be equal."""
    import platform

    import comfyui_version

    return {
        "torch": torch.__version__.split("+")[0],
        "comfyui": comfyui_version.__version__,
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


@contextlib.contextmanager
def over_http():
    """The address of a server with the pack's routes, which runs in its own thread."""
    import server
    from aiohttp import web

    instance = server.PromptServer.instance
    before, instance.routes = instance.routes, web.RouteTableDef()
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), []

    async def serve():
        extension = await sys.modules["bespoke"].comfy_entrypoint()
        await extension.on_load()  # adds the routes
        app = web.Application()
        app.add_routes(instance.routes)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.extend(runner.addresses[0][:2])
        ready.set()

    loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http://{found[0]}:{found[1]}"
    finally:
        instance.routes = before
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextlib.contextmanager
def after_step(number, action):
    """Call `action` after the optimiser's step `number`."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = 0

    def hook(*_):
        nonlocal steps
        steps += 1
        if steps == number:
            action()

    hook = register_optimizer_step_post_hook(hook)
    try:
        yield
    finally:
        hook.remove()

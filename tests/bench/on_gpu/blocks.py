"""What the blocks of `plan` measure. Each function gets a `Work` and writes rows into it.

Imports ComfyUI and the pack, which `host.start` must have started.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import inprocess
import peers
import tiny
import torch

from on_gpu import measure, models
from on_gpu.work import Work

BARE, OURS = "bare forward and backward", "this pack"
# Of one weight dtype, in the order of their worth: (px, batch, checkpointing).
SHAPES = {
    "bf16": (
        (1024, 1, False),
        (1024, 1, True),
        (512, 1, False),
        (1024, 4, True),
        (512, 4, False),
        (1024, 4, False),
        (512, 4, True),
        (512, 1, True),
    ),
    "fp8": ((1024, 1, False), (1024, 1, True), (1024, 4, True), (512, 1, False), (512, 4, False)),
}


def machine(work: Work, _: str) -> None:
    """Facts of the machine, and the rate of a matrix product in bfloat16."""
    import platform

    import comfyui_version

    on_gpu = torch.cuda.is_available()
    facts = {
        "GPU": torch.cuda.get_device_name() if on_gpu else "none",
        "GPU memory, GiB": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if on_gpu else None,
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "ComfyUI": comfyui_version.__version__,
        "cores": os.cpu_count(),
        "kernels of comfy-kitchen for CUDA": _has_kitchen_kernels(),
    }
    for what, value in facts.items():
        work.write(what=what, value=value)
    side = 256 if work.small else 8192
    a, b = (torch.randn(side, side, device=models.device(), dtype=torch.bfloat16) for _ in range(2))
    work.measure(
        lambda: dict(value=round(2 * side**3 / measure.timed(lambda: a @ b, 10) / 1e12, 2)),
        what=f"TFLOP/s of {side} x {side} in bfloat16",
    )


def _has_kitchen_kernels() -> bool:
    import comfy_kitchen

    return any((Path(comfy_kitchen.__file__).parent / "backends" / "cuda").glob("*.so"))


def lora(work: Work, name: str) -> None:
    """The steps of a LoRA at every size, with the bare network at the first one."""
    for dtype in SHAPES:
        _lora_of(work, name, dtype)
        measure.clear()


def _lora_of(work: Work, name: str, dtype: str) -> None:
    three, steps = models.make(name, work.small, dtype), work.steps(6)
    for number, (px, batch, saving) in enumerate(work.some(SHAPES[dtype])):
        side = work.side(px)
        row = dict(model=name, dtype=dtype, px=side, batch=batch, checkpointing=saving)
        settings = dict(batch_size=batch, gradient_checkpointing=saving)
        work.measure(lambda: measure.train(three, side, steps, **settings), what=OURS, **row)
        if number == 0:
            work.measure(lambda: measure.bare(three, name, side, batch, saving, 3), what=BARE, **row)


# --- peers ------------------------------------------------------------------------------------------------------------


def peers_steps(work: Work, _: str) -> None:
    """SD1.5 and SDXL in bfloat16, the same shapes, layers and rank; core trains every layer that it finds."""
    for name, px, batches in (("SD1.5", 512, (1, 4)), ("SDXL", 1024, (1,))):
        side, three = work.side(px), models.make(name, work.small)
        for batch in batches:
            row = dict(model=name, dtype="bf16", px=side, batch=batch)
            ours = work.measure(lambda: _ours(work, three, side, batch), what=OURS, **row)
            for what, call in (
                ("diffusers with PEFT", lambda: _peft(work, name, side, batch)),
                (BARE, lambda: measure.bare(three, name, side, batch, False, work.steps(6))),
                ("core's trainer, every layer", lambda: _core(work, three, name, side, batch)),
            ):
                work.measure(lambda: _beside(ours, call()), what=what, **row)


def compiled(work: Work, _: str) -> None:
    """With torch.compile: this pack by blocks; diffusers by its repeated blocks."""
    for name, px, batch in (("SDXL", 1024, 1), ("SD1.5", 512, 4), ("Flux", 1024, 1)):
        _compiled_of(work, name, work.side(px), batch)
        measure.clear()


def _compiled_of(work: Work, name: str, side: int, batch: int) -> None:
    three = models.make(name, work.small)
    row = dict(model=name, dtype="bf16", px=side, batch=batch)
    ours = work.measure(lambda: _ours(work, three, side, batch, compile=True), what=OURS, compile=True, **row)
    if name != "Flux":
        peft = partial(_peft, work, name, side, batch, compile=True)
        work.measure(lambda: _beside(ours, peft()), what="diffusers with PEFT", compile=True, **row)
    work.measure(lambda: _beside(ours, _ours(work, three, side, batch)), what=OURS, compile=False, **row)


def _beside(ours: dict, other: dict) -> dict:
    """`other` with its time by ours; without a time of ours as it is."""
    if not ours.get("step_ms") or not other.get("step_ms"):
        return other
    return other | dict(ratio=other["step_ms"] / ours["step_ms"])


def _ours(work: Work, three: Any, side: int, batch: int, **settings: Any) -> dict:
    return measure.train(three, side, work.steps(8), batch_size=batch, **settings)


def _peft(work: Work, name: str, side: int, batch: int, compile: bool = False) -> dict:
    """diffusers' U-Net with random weights on the device and PEFT's adapters in bfloat16."""
    measure.clear()
    sdxl, where = name == "SDXL", models.device()
    unet = peers.random_unet(sdxl, where, work.small)
    if compile:
        unet.compile_repeated_blocks(backend="inductor" if where.type == "cuda" else "aot_eager")
    width = unet.config.cross_attention_dim
    latents = torch.randn(4, 4, side // 8, side // 8, device=where)
    contexts = torch.randn(4, 77, width, device=where, dtype=torch.bfloat16)
    run = peers.PeftLora(unet, latents, contexts, batch, 1e-5, 1000, measure.RANK, bf16=True)
    if sdxl:
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        run.further = dict(
            added_cond_kwargs=dict(
                text_embeds=torch.randn(batch, pooled, device=where, dtype=torch.bfloat16),
                time_ids=torch.full((batch, 6), float(side), device=where),
            )
        )
    ms = 1e3 * measure.timed(run.step, work.steps(8))
    return dict(step_ms=ms, peak_gb=measure.peak_gb(), trained=sum(p.numel() for p in run.parameters))


def _core(work: Work, three: Any, name: str, side: int, batch: int) -> dict:
    """ComfyUI's TrainLoraNode in bypass mode."""
    model, clip, _ = three
    measure.clear()
    (positive,) = inprocess.call_node("CLIPTextEncode", clip=clip, text="a red circle")
    latents = torch.randn(models.latent_shape(name, side, 4))
    began = time.perf_counter()
    with measure.stamps() as times:
        inprocess.call_node(
            "TrainLoraNode", model=[model], latents=[{"samples": latents}], positive=[positive * 4],
            batch_size=[batch], grad_accumulation_steps=[1], steps=[work.steps(8)], learning_rate=[1e-5],
            rank=[measure.RANK], optimizer=["AdamW"], loss_function=["MSE"], seed=[0], training_dtype=["bf16"],
            lora_dtype=["bf16"], quantized_backward=[False], algorithm=["LoRA"], gradient_checkpointing=[False],
            checkpoint_depth=[1], offloading=[False], existing_lora=["[None]"], bucket_mode=[False],
            bypass_mode=[True],
        )  # fmt: skip
    seconds = time.perf_counter() - began
    return dict(step_ms=measure.step_ms(times), peak_gb=measure.peak_gb(), seconds=seconds)


# --- memory -----------------------------------------------------------------------------------------------------------

CARDS = (
    (8, "SDXL", "bf16", 1024, True),
    (12, "Flux", "fp8", 1024, True),
    (8, "Z-Image", "fp8", 1024, True),
    (16, "Wan 14B", "fp8", 1024, True),
    (24, "Flux", "bf16", 1024, True),
    (12, "SDXL", "bf16", 1024, False),
    (8, "SD1.5", "bf16", 512, False),
)


def cards(work: Work, _: str) -> None:
    """A LoRA at batch 1 on cards of these sizes: the weights come from the computer's memory."""
    for gb, name, dtype, px, saving in work.some(CARDS):
        side = work.side(px)
        work.measure(
            lambda: _on_card(work, gb, name, dtype, side, saving),
            what=OURS, model=name, dtype=dtype, px=side, batch=1, checkpointing=saving, card_gb=gb,
        )  # fmt: skip


def _on_card(work: Work, gb: int, name: str, dtype: str, side: int, saving: bool) -> dict:
    three = models.make(name, work.small, dtype)
    three[0].model.to("cpu")
    with measure.card(gb) as taken:
        row = measure.train(three, side, work.steps(4), batch_size=1, gradient_checkpointing=saving)
    if row["peak_gb"] is not None:
        row["peak_gb"] -= taken
        row["off"] = row["forecast_gb"] / row["peak_gb"]
    return row


def from_file(work: Work, dynamic: str) -> None:
    """SD1.5 from a file of its U-Net: a LoRA and a sampling."""
    import comfy.model_patcher
    import comfy.sd
    from safetensors.torch import save_file

    file, side = work.folder / "unet.safetensors", work.side(512)
    if not file.exists():
        made, *_ = models.make("SD1.5", work.small)
        weights = made.model.diffusion_model.state_dict()
        save_file({key: value.to("cpu", torch.float16).contiguous() for key, value in weights.items()}, file)
    _, clip, vae = models.make("SD1.5", True)
    # The stand-in is no class of ComfyUI's, which dynamic VRAM is for.
    clip.patcher = comfy.model_patcher.ModelPatcher(
        clip.cond_stage_model, clip.patcher.load_device, clip.patcher.offload_device
    )
    model = comfy.sd.load_diffusion_model(str(file))
    row = dict(model="SD1.5", dtype="fp16 file", px=side, batch=1)
    work.write(what="dynamic VRAM", value=f"asked {dynamic}, is {'on' if model.is_dynamic() else 'off'}")
    sample = Sampling(work, (model, clip, vae), "SD1.5", side)
    work.measure(lambda: dict(seconds=sample.seconds("KSampler")), what="KSampler before, 10 steps", **row)
    work.measure(lambda: measure.train((model, clip, vae), side, work.steps(6), batch_size=1), what=OURS, **row)
    work.measure(lambda: dict(seconds=sample.seconds("KSampler")), what="KSampler after, 10 steps", **row)


# --- words, sampling, LoRAs -------------------------------------------------------------------------------------------


def words(work: Work, _: str) -> None:
    """A word of two vectors: CLIP-L; CLIP-L and CLIP-G; CLIP-L and T5-XXL."""
    for name in ("SD1.5", "SDXL", "Flux"):
        side = work.side(512)
        work.measure(partial(_word, work, name, side), what=OURS, model=name, dtype="bf16", px=side, batch=1)
        measure.clear()


def _word(work: Work, name: str, side: int) -> dict:
    model, _, vae = models.make(name, work.small)
    return measure.train(
        (model, models.text_encoder(name, work.small), vae), side, work.steps(6), "BespokeTrainTextualInversion",
        name="w", init_text="red", vectors=2, batch_size=1, learning_rate=5e-3,
    )  # fmt: skip


class Sampling:
    """Samplings of a picture by core's KSampler and this pack's nodes, of ten steps with a negative prompt."""

    def __init__(self, work: Work, three: Any, name: str, side: int) -> None:
        self.model, clip, _ = three
        self.settings = dict(steps=work.steps(10), cfg=2.0, sampler_name="euler", scheduler="normal", seed=1)
        for key, text in (("positive", "a red circle"), ("negative", "")):
            (self.settings[key],) = inprocess.call_node("CLIPTextEncode", clip=clip, text=text)
        self.latent = {"samples": torch.randn(models.latent_shape(name, side, 1))}
        self.side = side

    def run(self, node: str = "KSampler", model: Any = None, latent: Any = None, **more: Any) -> Any:
        more = more or {"denoise": 1.0}
        return inprocess.call_node(
            node, model=model or self.model, latent_image=latent or self.latent, **self.settings, **more
        )

    def seconds(self, node: str = "KSampler", **more: Any) -> float:
        return measure.timed(lambda: self.run(node, **more), 3, 1)

    def blended(self, blend: str) -> tuple[Any, Any]:
        mask = torch.zeros(1, self.side, self.side)
        mask[:, self.side // 4 : self.side // 2, self.side // 4 : self.side // 2] = 1.0
        model, latent, *_ = inprocess.call_node(
            "BespokeLatentMaskBlend", model=self.model, latent=self.latent, mask=mask, blend=blend
        )
        return model, latent


def sampling(work: Work, _: str) -> None:
    """Beside KSampler: partial denoise whole and half, and a masked sampling with each blend."""
    side, three = work.side(1024), models.make("SDXL", work.small)
    sample = Sampling(work, three, "SDXL", side)
    row = dict(model="SDXL", dtype="bf16", px=side, batch=1)
    plain = work.measure(lambda: dict(seconds=sample.seconds()), what="KSampler", **row)

    def beside(seconds: float) -> dict:
        return dict(seconds=seconds, ratio=seconds / plain["seconds"] if plain.get("seconds") else None)

    for strength in (1.0, 0.5):
        work.measure(
            lambda: beside(sample.seconds("BespokePartialDenoise", strength=strength)),
            what=f"Partial Denoise, strength {strength}", **row,
        )  # fmt: skip
    for blend in ("re-inject", "prediction", "differential"):
        model, latent = sample.blended(blend)
        work.measure(
            lambda: beside(sample.seconds(model=model, latent=latent)), what=f"KSampler, mask blend {blend}", **row
        )


def inject(work: Work, _: str) -> None:
    """Ten LoRA files one after the other: the nodes, the first sampling with the merge, and a later one."""
    import folder_paths
    from safetensors.torch import save_file

    side, three = work.side(1024), models.make("SDXL", work.small)
    layers = tiny.linear_layers(three[0], "attn2")
    folder, files = Path(folder_paths.get_folder_paths("loras")[0]), [f"gpu-{n}.safetensors" for n in range(10)]
    for number, file in enumerate(files):
        save_file(tiny.random_lora(layers, measure.RANK, seed=number, size=0.01), folder / file)
    row = dict(model="SDXL", dtype="bf16", px=side, batch=1)
    for what, node, more in (
        ("core's Load LoRA", "LoraLoaderModelOnly", {}),
        ("Inject LoRA, merge", "BespokeInjectLora", {"mode": "merge"}),
        ("Inject LoRA, bypass", "BespokeInjectLora", {"mode": "bypass"}),
    ):
        made: list[Any] = []

        def load() -> dict:
            began, model = time.perf_counter(), three[0]
            for file in files:
                model, *_ = inprocess.call_node(node, model=model, lora_name=file, strength_model=0.1, **more)
            made.append(Sampling(work, (model, *three[1:]), "SDXL", side))
            return dict(seconds=time.perf_counter() - began)

        work.measure(load, what=f"{what}: the nodes", **row)
        if made:
            work.measure(lambda: dict(seconds=measure.timed(made[0].run, 1, 0)), what=f"{what}: first sampling", **row)
            work.measure(lambda: dict(seconds=made[0].seconds()), what=f"{what}: later sampling", **row)


# --- one process of several -------------------------------------------------------------------------------------------


def shard(work: Work, _: str) -> None:
    """A world of one process: an all-reduce, then a LoRA on a sharded base."""
    import torch.distributed as dist
    from bespoke.nodes.jobs import command

    environ = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    os.environ.update(environ)
    options = command.arguments(["job", "--shard", "--timeout", "30"])
    where = models.device()
    world = command.connect(options, where)
    numbers = torch.ones(2**16 if work.small else 2**24, device=where)
    backend = command.backend_for(where)
    work.measure(
        lambda: dict(step_ms=1e3 * measure.timed(lambda: dist.all_reduce(numbers), 5)),
        what=f"{backend}: all-reduce of {numbers.nbytes / 2**20:g} MiB", batch=None,
    )  # fmt: skip
    side = work.side(1024)
    for name in ("SDXL", "Flux"):
        work.measure(
            lambda: _sharded(work, world, name, side, where),
            what="this pack, --shard", model=name, dtype="bf16", px=side, batch=1, checkpointing=True,
        )  # fmt: skip
    dist.destroy_process_group()


def _sharded(work: Work, world: Any, name: str, side: int, where: torch.device) -> dict:
    """A LoRA by the trainer's own parts, as a job does it."""
    from bespoke.nodes.bridge.runs.context import RunContext
    from bespoke.nodes.bridge.trainer import Models, train
    from bespoke.nodes.jobs.sharding import shard_base
    from bespoke.nodes.lora.training.node import request_from_inputs
    from bespoke.nodes.lora.training.technique import LoraTechnique, encode_dataset
    from helpers import sprite_set

    model, clip, vae = models.make(name, work.small, on_cpu=work.small)
    model.model.to("cpu")
    model.load_device = model.offload_device  # it is sharded from there, as jobs/work.py has it
    request, data = request_from_inputs(
        dict(
            images=sprite_set(1, 4, colour="teal", side=side), steps=work.steps(6), batch_size=1, seed=0,
            learning_rate=1e-5, rank=measure.RANK, alpha=float(measure.RANK), gradient_checkpointing=True,
            precision="bf16", resume=False,
        )
    )  # fmt: skip
    three, held = Models(model, clip, vae), list[tuple[int, int]]()
    measure.clear()
    with torch.inference_mode(), measure.stamps() as times:
        dataset = encode_dataset(three, data, request)
        context = RunContext(
            world=world, prepare_model=lambda denoiser: held.append(shard_base(denoiser, where)), sharded=True
        )
        train(LoraTechnique(request, three, dataset), three, dataset, context)
    base_bytes, held_bytes = held[0]
    value = f"{held_bytes / 1e9:.2f} of {base_bytes / 1e9:.2f} GB are held"
    return dict(step_ms=measure.step_ms(times), peak_gb=measure.peak_gb(), value=value)

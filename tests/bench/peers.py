"""What the benchmarks compare with: the same network in diffusers, trained as in its scripts, and the bare network.

All use the weights, latents, conditionings and noise schedule of this pack's training. The peers get precomputed
latents and conditionings, which their scripts compute at every step, so every comparison favours them.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

TARGETS = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]


def diffusers_unet(checkpoint: Path):
    """The checkpoint's U-Net as diffusers' own class, float32, frozen."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from safetensors.torch import load_file

    start = "model.diffusion_model."
    weights = {key: value.float() for key, value in load_file(checkpoint).items() if key.startswith(start)}
    channels = weights[start + "time_embed.0.weight"].shape[1]
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(channels, channels),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    unet.load_state_dict(convert_ldm_unet_checkpoint(weights, dict(unet.config)))
    return unet.requires_grad_(False)


def random_unet(sdxl: bool, device: torch.device, small: bool = False):
    """diffusers' U-Net of SD1.5 or SDXL in its released configuration with random weights, bfloat16, frozen.

    small: the same blocks with few channels.
    """
    from diffusers import UNet2DConditionModel

    config: dict = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    if sdxl:
        config = dict(
            sample_size=128, cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    if small:
        channels = (32, 64, 64) if sdxl else (32, 64, 64, 64)
        config |= dict(block_out_channels=channels, attention_head_dim=2, cross_attention_dim=48)
        config |= dict(transformer_layers_per_block=(1, 1, 2)) if sdxl else {}
    with torch.device(device):
        unet = UNet2DConditionModel(**config)
    return unet.to(torch.bfloat16).requires_grad_(False)


def scheduler():
    """SD1.5's training schedule."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


class PeftLora:
    """diffusers' train_text_to_image_lora.py with PEFT: uniform timesteps, MSE on the noise, AdamW, clipping, one call
    a step.

    latents: [N, 4, H, W], scaled. contexts: [N, 77, 768]. `step()` does one optimiser step and gives its loss;
    `held_out(batches)` the loss on a fixed grid of (latent, noise, timestep, context). bf16: as with
    --mixed_precision=bf16: the frozen weights in bfloat16, the adapters in float32, autocast around the network.
    """

    def __init__(
        self,
        unet,
        latents: Tensor,
        contexts: Tensor,
        batch: int,
        learning_rate: float,
        steps: int,
        rank: int = 8,
        seed: int = 0,
        bf16: bool = False,
    ):
        from diffusers.optimization import get_scheduler
        from peft import LoraConfig

        torch.manual_seed(seed)
        self.unet, self.latents, self.contexts, self.batch = unet, latents, contexts, batch
        self.further: dict = {}  # arguments of the network besides, such as SDXL's pooled vector and sizes
        if getattr(unet, "peft_config", None):
            unet.delete_adapters("default")
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
        unet.train()
        self.parameters = [p for p in unet.parameters() if p.requires_grad]
        self.bf16 = bf16
        if bf16:
            unet.to(torch.bfloat16)
            for parameter in self.parameters:
                parameter.data = parameter.data.float()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8
        )
        self.schedule = get_scheduler("cosine", self.optimizer, num_warmup_steps=0, num_training_steps=steps)
        self.noising, self.order = scheduler(), []

    def step(self) -> float:
        while len(self.order) < self.batch:
            self.order += torch.randperm(len(self.latents)).tolist()
        chosen, self.order = self.order[: self.batch], self.order[self.batch :]
        latent = self.latents[chosen]
        noise = torch.randn_like(latent)
        timesteps = torch.randint(0, 1000, (self.batch,), device=latent.device)
        noisy = self.noising.add_noise(latent, noise, timesteps)
        with torch.autocast(latent.device.type, torch.bfloat16, enabled=self.bf16):
            predicted = self.unet(noisy, timesteps, self.contexts[chosen], **self.further, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def held_out(self, batches: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> float:
        self.unet.eval()
        losses = []
        for latent, noise, timesteps, context in batches:
            predicted = self.unet(
                self.noising.add_noise(latent, noise, timesteps), timesteps, context, return_dict=False
            )[0]
            losses.append(torch.nn.functional.mse_loss(predicted, noise).item())
        self.unet.train()
        return sum(losses) / len(losses)


def bare_step(unet, latent: Tensor, timesteps: Tensor, context: Tensor):
    """A function that runs ComfyUI's U-Net forward and backward with no adapter, loss or optimiser.

    The backward pass goes down to the first cross-attention's queries: through all that a LoRA on the cross-attentions
    must compute for the activations, and no weight, and not the context, is given a gradient.
    """
    first = next(layer for name, layer in unet.named_modules() if name.endswith("attn2.to_q"))
    ones = torch.ones_like(latent)

    def step() -> None:
        handle = first.register_forward_hook(lambda _, __, output: output.requires_grad_(True))
        unet(latent, timesteps, context=context).backward(ones)
        handle.remove()

    return step


def seconds(step, count: int) -> tuple[float, float]:
    """(processor, wall) seconds of one of `count` calls, on average."""
    began = time.process_time(), time.perf_counter()
    for _ in range(count):
        step()
    return (time.process_time() - began[0]) / count, (time.perf_counter() - began[1]) / count


def steps_of(run) -> tuple[float, float]:
    """(processor, wall) seconds a step of a node's run, from the first step's end to the last's, by ComfyUI's
    progress."""
    import comfy.utils

    stamps = []
    comfy.utils.set_progress_bar_global_hook(
        lambda value, *_, **__: stamps.append((value, time.process_time(), time.perf_counter()))
    )
    try:
        run()
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    first, last = (next(s for s in stamps if s[0] >= 1), stamps[-1])
    steps = max(last[0] - first[0], 1)
    return (last[1] - first[1]) / steps, (last[2] - first[2]) / steps


def peak_mb(step) -> float:
    """The peak of torch's allocator in one call minus its start, in MB."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def transformers_clip(checkpoint: Path):
    """The checkpoint's CLIP-L as transformers' own class, float32."""
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
        )
    )
    start = "cond_stage_model.transformer."
    weights = {
        key.removeprefix(start): value.float() for key, value in load_file(checkpoint).items() if key.startswith(start)
    }
    if not any(key.startswith("text_model.") for key in text.state_dict()):
        weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    missing, unknown = text.load_state_dict(weights, strict=False)
    assert not unknown
    assert not [key for key in missing if "position_ids" not in key]
    return text


class DiffusersInversion:
    """diffusers' textual_inversion.py: AdamW over the whole embedding table, whose other rows are put back after each
    step.

    latents: [N, 4, H, W], scaled. rows: [N, 77] token ids of the sentences; `word` is the row of the table that learns.
    """

    def __init__(
        self, unet, text, latents: Tensor, rows: Tensor, word: int, batch: int, learning_rate: float, seed: int = 0
    ):
        torch.manual_seed(seed)
        self.unet, self.text, self.latents, self.rows, self.word, self.batch = unet, text, latents, rows, word, batch
        text.requires_grad_(False)
        self.table = text.get_input_embeddings().weight.requires_grad_(True)
        self.kept = self.table.data.clone()
        self.optimizer = torch.optim.AdamW(
            [self.table], lr=learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8
        )
        self.noising = scheduler()
        text.train()

    def step(self) -> float:
        chosen = torch.randint(0, len(self.latents), (self.batch,))
        latent = self.latents[chosen]
        noise = torch.randn_like(latent)
        timesteps = torch.randint(0, 1000, (self.batch,))
        noisy = self.noising.add_noise(latent, noise, timesteps)
        context = self.text(self.rows[chosen])[0]
        predicted = self.unet(noisy, timesteps, context, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        others = torch.ones(len(self.table), dtype=torch.bool)
        others[self.word] = False
        with torch.no_grad():
            self.table[others] = self.kept[others]
        return loss.item()

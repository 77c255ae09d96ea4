"""Whether a LoRA keeps the few steps of a distilled base, trained with a training adapter and without.

    python3 dev.py test -m bench tests/bench/bench_training_adapter.py -s

The stand-in for a distilled base is made of the small model: progressive distillation (Salimans & Ho 2022, arXiv
2202.00512, section 3) from 16 Euler steps at CFG 2 to 4 steps at CFG 1, in one go, with guidance in the student (Meng
et al. 2023, arXiv 2210.03142). The training adapter is made as ostris made that of Z-Image Turbo: a LoRA trained with
the usual loss on pictures that the distilled model drew. Both are kept in the cache folder; the first test makes them.

Then the colour teal is taught to the distilled model, with the adapter and without, and pictures are drawn in 4 steps
at CFG 1: of known colours, which must still obey their prompt, and of teal. A picture counts where colour and shape are
those of the prompt, as tests/small_model/judge.py measures them.

BESPOKE_BENCH_STEPS (160), BESPOKE_BENCH_SEEDS (3) and BESPOKE_BENCH_DISTIL (200) are the lengths. Recording the teacher
takes about three minutes on two cores that others use too.
"""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]

STEPS, SEEDS = int(os.environ.get("BESPOKE_BENCH_STEPS", 160)), int(os.environ.get("BESPOKE_BENCH_SEEDS", 3))
DISTIL = int(os.environ.get("BESPOKE_BENCH_DISTIL", 200))
FEW, INNER, CFG, BATCH, TRAJECTORIES = 4, 4, 2.0, 16, 96
KNOWN = (("red", "circle"), ("blue", "square"), ("green", "triangle"), ("yellow", "cross"))
TEAL = (("teal", "circle"), ("teal", "square"), ("teal", "cross"), ("teal", "ring"))


def cached(name: str) -> Path:
    folder = Path(os.environ.get("BESPOKE_CACHE") or Path(__file__).resolve().parents[2] / ".dev" / "cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"bespoke-bench-adapter-{name}-{DISTIL}.safetensors"


def prompts_for(count: int, seed: int) -> list[str]:
    import sprites

    rng = np.random.default_rng(seed)
    colours, grounds = list(sprites.COLOURS), list(sprites.GROUNDS)
    picked = (
        sprites.random_sprite(rng, colours[rng.integers(7)], sprites.SHAPES[rng.integers(6)], grounds[rng.integers(2)])
        for _ in range(count)
    )
    return [sprites.caption(rng, sprite) for sprite in picked]


class Network:
    """The small U-Net as a denoiser of ComfyUI's noise levels. D(x, sigma) = x - sigma * eps(x / sqrt(sigma^2 + 1))."""

    def __init__(self, sampling, state):
        import train

        self.unet = train.new_unet(torch.device("cpu"))
        self.unet.load_state_dict(state)
        self._sampling = sampling

    def __call__(self, x, sigma, context):
        level = sigma.reshape(-1, 1, 1, 1)
        t = self._sampling.timestep(sigma)
        with torch.autocast("cpu", torch.bfloat16):
            eps = self.unet(x / (level**2 + 1).sqrt(), t, context=context)
        return x - level * eps.float()


def sigmas_of(sampling, steps: int) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(sampling, "normal", steps)


def contexts(clip, prompts):
    from bespoke.nodes.bridge.dataset.conditioning import encode_prompt

    return torch.cat([encode_prompt(clip, prompt)[0] for prompt in prompts]).float()


def trajectories(small, network) -> dict[str, torch.Tensor]:
    """{"x": [N, FEW + 1, C, H, W] at the student's noise levels, "context": [N, 77, 768]} of the teacher."""
    path = cached("trajectories")
    if path.is_file():
        return load_file(path)
    sampling = small[0].model.model_sampling
    outer = sigmas_of(sampling, FEW)
    prompts = prompts_for(TRAJECTORIES, 11)
    empty = contexts(small[1], [""]).expand(BATCH, -1, -1)
    every, kept = contexts(small[1], prompts), []
    noises = torch.randn(TRAJECTORIES, 4, 16, 16, generator=torch.Generator().manual_seed(12))
    with torch.no_grad():
        for first in range(0, TRAJECTORIES, BATCH):
            context, x = every[first : first + BATCH], noises[first : first + BATCH] * (outer[0] ** 2 + 1).sqrt()
            states = [x]
            for high, low in zip(outer[:-1], outer[1:], strict=True):
                inner = torch.linspace(1, 0, INNER + 1) * (high - low) + low
                for now, after in zip(inner[:-1], inner[1:], strict=True):
                    both = network(torch.cat([x, x]), now.expand(2 * BATCH), torch.cat([context, empty]))
                    clean = both[BATCH:] + CFG * (both[:BATCH] - both[BATCH:])
                    x = x + (x - clean) / now * (after - now)
                states.append(x)
            kept.append(torch.stack(states, 1))
    found = {"x": torch.cat(kept), "context": every.contiguous()}
    save_file(found, path)
    return found


def distil(small, network) -> dict[str, torch.Tensor]:
    """The student's weights."""
    path = cached("unet")
    if path.is_file():
        return load_file(path)
    data, outer = trajectories(small, network), sigmas_of(small[0].model.model_sampling, FEW)
    network.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.unet.parameters(), lr=2e-4, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DISTIL)
    generator, started, losses = torch.Generator().manual_seed(13), time.monotonic(), []
    for step in range(DISTIL):
        rows = torch.randint(TRAJECTORIES, (BATCH,), generator=generator)
        places = torch.arange(BATCH) % FEW
        x, after = data["x"][rows, places], data["x"][rows, places + 1]
        now, then = outer[places].reshape(-1, 1, 1, 1), outer[places + 1].reshape(-1, 1, 1, 1)
        wanted = x - now * (after - x) / (then - now)  # the Euler step from it ends where the teacher's four end
        error = (network(x, now.flatten(), data["context"][rows]) - wanted).square().mean((1, 2, 3))
        loss = (error * (1 / now.flatten() ** 2).clamp(min=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"distillation {step + 1}/{DISTIL}: {np.mean(losses[-50:]):.4f}, {time.monotonic() - started:.0f} s")
    state = {name: part.detach().contiguous() for name, part in network.unet.state_dict().items()}
    save_file(state, path)
    return state


@pytest.fixture(scope="module")
def distilled(comfyui, small):
    """(model, clip, vae) with the distilled U-Net."""
    import comfy.sd
    import model as checkpoint

    with torch.inference_mode(False):
        network = Network(small[0].model.model_sampling, checkpoint.unpack())
        state = distil(small, network)
    path = cached("checkpoint")
    if not path.is_file():
        checkpoint.write_checkpoint(path, state)
    folder = str(comfyui / "models" / "embeddings")
    return comfy.sd.load_checkpoint_guess_config(str(path), embedding_directory=folder)[:3]


def draw(run_node, models, wanted, count: int, steps: int, cfg: float, seed: int):
    from helpers import sample

    prompts = [f"a {colour} {shape} on white" for colour, shape in wanted]
    return sample(run_node, *models, prompts, count, cfg=cfg, steps=steps, seed=seed)


def obeying(pictures, wanted) -> int:
    """How many pictures show the colour and the shape of their prompt. The pictures of a prompt follow each other."""
    from judge import judge

    each = len(pictures) // len(wanted)
    asked_for = [pair for pair in wanted for _ in range(each)]
    verdicts = [judge(picture) for picture in pictures]
    return sum((one.colour, one.shape) == pair for one, pair in zip(verdicts, asked_for, strict=True))


@pytest.fixture(scope="module")
def adapter(run_node, distilled):
    """The training adapter: a LoRA trained with the usual loss on what the distilled model draws."""
    from bespoke.training.images import TrainingImage
    from helpers import image_set, sample

    path = cached("adapter")
    if path.is_file():
        return load_file(path)
    prompts = prompts_for(96, 21)
    drawn = [
        sample(run_node, *distilled, [prompt], 1, cfg=1.0, steps=FEW, seed=n)[0] for n, prompt in enumerate(prompts)
    ]
    pairs = zip(drawn, prompts, strict=True)
    items = [TrainingImage(f"{n}", torch.from_numpy(np.array(image)), text) for n, (image, text) in enumerate(pairs)]
    model, clip, vae = distilled
    _, lora, *_ = run_node(
        "BespokeTrainLora", model=model, clip=clip, vae=vae, images=image_set(items), steps=150, batch_size=8,
        rank=16, alpha=16.0, learning_rate=1e-3, targets="attention + feed-forward", seed=1, resume=False, keep="last",
        score_pictures="off",
    )  # fmt: skip
    save_file({key: part.contiguous() for key, part in lora.items()}, path)
    return lora


def test_the_teacher_is_recorded(small):
    """The first part of the distillation by itself, so that each part takes a few minutes."""
    import model as checkpoint

    with torch.inference_mode(False):
        found = trajectories(small, Network(small[0].model.model_sampling, checkpoint.unpack()))
    assert found["x"].shape == (TRAJECTORIES, FEW + 1, 4, 16, 16)


def test_the_stand_in_draws_in_four_steps(run_node, small, distilled):
    """What the distillation is for: counts of 16 pictures that show what their prompt says."""
    rows = (
        ("undistilled, 4 steps, CFG 1", small, FEW, 1.0),
        ("undistilled, 4 steps, CFG 2", small, FEW, CFG),
        ("undistilled, 16 steps, CFG 2", small, 16, CFG),
        ("distilled, 4 steps, CFG 1", distilled, FEW, 1.0),
    )
    print()
    for name, models, steps, cfg in rows:
        count = obeying(draw(run_node, models, KNOWN, 4, steps, cfg, 3), KNOWN)
        print(f"{name:32} {count:>3} of 16")


def test_the_few_steps_after_a_training(run_node, distilled, adapter):
    """Counts of 16 pictures each, drawn in 4 steps at CFG 1 without the adapter, and the drift of the report."""
    from helpers import sprite_set

    model, clip, vae = distilled
    totals: dict[str, list[int]] = {"plain": [0, 0], "with the adapter": [0, 0]}
    print(f"\n{'seed':>4} {'training':18} {'known':>6} {'teal':>5} {'held-out':>18}  drift")
    for seed in range(SEEDS):
        for name, given in (("plain", {}), ("with the adapter", {"training_adapter": adapter})):
            trained, _, _, run, report, _ = run_node(
                "BespokeTrainLora", model=model, clip=clip, vae=vae, images=sprite_set(1, 12, colour="teal"),
                validation_images=sprite_set(77, 4, colour="teal"), steps=STEPS, batch_size=4, rank=8, alpha=8.0,
                learning_rate=1e-3, seed=seed, resume=False, keep="last", score_pictures="off", **given,
            )  # fmt: skip
            counts = [
                obeying(draw(run_node, (trained, clip, vae), wanted, 4, FEW, 1.0, 100 + seed), wanted)
                for wanted in (KNOWN, TEAL)
            ]
            totals[name] = [total + count for total, count in zip(totals[name], counts, strict=True)]
            drift = next((line for line in report.splitlines() if line.startswith("Few-step drift")), "")
            first, last = run.held_out[0][1], run.held_out[-1][1]
            print(
                f"{seed:>4} {name:18} {counts[0]:>6} {counts[1]:>5} {first:>8.5f} {last:>8.5f}  "
                f"{drift.partition('have the loss ')[2]}",
                flush=True,
            )
    print("all", totals, f"of {16 * SEEDS} each")


def test_the_cost_of_a_step(small):
    """A forward and a backward pass with what is trained, over the same without an adapter, alternately.

    Of rank 16 on attention and feed-forward: two factors beside the layers, and the same change as whole differences,
    for which each weight is computed at each call.
    """
    import statistics

    from bespoke.nodes.bridge.dataset.conditioning import encode_prompt, join_conds, model_conds
    from bespoke.nodes.bridge.models import target_layers
    from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
    from bespoke.nodes.lora.training.training_adapter import TrainingAdapter
    from bespoke.training.objective import denoising_loss
    from random_lora import random_lora
    from tiny import linear_layers
    from tiny import random_lora as random_file

    model, clip, _ = small
    file = random_file(linear_layers(model, "transformer_blocks"), rank=16, alpha=16.0, size=0.01)
    layers = {key.removesuffix(".alpha") for key in file if key.endswith(".alpha")}
    whole = {f"{one}.diff": file[f"{one}.lora_up.weight"] @ file[f"{one}.lora_down.weight"] for one in layers}
    prompt = encode_prompt(clip, "a red circle on white")
    with torch.inference_mode(False), prepare_for_training(model, "fp32") as denoiser:
        targets = target_layers(denoiser.base.diffusion_model, "cross-attention")
        trained, noises = random_lora(targets, 8, denoiser.device), torch.randn(2, 2, 4, 16, 16)
        conds = join_conds([model_conds(denoiser.base, *prompt, noises[0][:1], denoiser.device)] * 2)
        sigma = denoiser.sigma(torch.tensor([0.3, 0.7]))

        def step() -> float:
            started = time.perf_counter()
            denoising_loss(denoiser, *noises, sigma, conds).mean().backward()
            return time.perf_counter() - started

        times = {"without": [], "two factors": [], "whole differences": []}
        adapters = [None, *(TrainingAdapter(each, 1.0, model, None) for each in (file, whole))]
        with trained.attached():
            for number in range(5):
                for seconds, adapter in zip(times.values(), adapters, strict=True):
                    if adapter is None:
                        seconds.append(step())
                        continue
                    with adapter.attached(denoiser.base, denoiser.device, None, None):
                        seconds.append(step())
                if number == 0:
                    for seconds in times.values():
                        seconds.clear()
    base = statistics.median(times["without"])
    print()
    for name, seconds in times.items():
        print(f"{name:18} {statistics.median(seconds):.3f} s a step of 2, {statistics.median(seconds) / base:.2f}")

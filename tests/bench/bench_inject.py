"""The cost of a LoRA compared with core's LoraLoader, on a U-Net of SD1.5's size with random weights.

    python3 dev.py test -m bench tests/bench/bench_inject.py -s

The two sides of a pair alternate on the same files and model, from the file to the weights in place. The median,
smallest and largest ratio of wall time and of processor time are printed; other work on the machine disturbs the
processor time less. $BESPOKE_BENCH_ROUNDS (5) is the number of rounds.
"""

import gc
import os
import statistics
import time

import pytest
import safetensors.torch
import tiny
import torch
from bespoke.training.layer_names.parts import split_key

pytestmark = pytest.mark.bench
ROUNDS = int(os.environ.get("BESPOKE_BENCH_ROUNDS", "5"))
SD15 = {**tiny.SD15, "model_channels": 320, "channel_mult": [1, 2, 4, 4], "context_dim": 768, "num_heads": 8}
RANK, TEN, CELLS = 16, 10, 32


@pytest.fixture(scope="module")
def model(comfyui):
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    cpu = torch.device("cpu")
    base = comfy.model_base.BaseModel(comfy.supported_models.SD15(dict(SD15)), device=cpu)
    with torch.no_grad():
        for parameter in base.diffusion_model.parameters():
            parameter.requires_grad_(False).uniform_(-0.02, 0.02)
    return comfy.model_patcher.ModelPatcher(base.eval(), cpu, cpu)


@pytest.fixture(scope="module")
def files(model, comfyui):
    """Ten rank-16 LoRAs of all attention and feed-forward layers, in kohya's names, in half precision, as usual
    files are."""
    layers = tiny.linear_layers(model, "transformer_blocks")
    names = []
    for seed in range(TEN):
        lora = tiny.random_lora(layers, RANK, 8.0, seed, size=0.02)
        named = {}
        for key, tensor in lora.items():
            layer, part = split_key(key.removeprefix("diffusion_model."))
            named[f"lora_unet_{layer.replace('.', '_')}{part}"] = tensor.half()
        safetensors.torch.save_file(named, comfyui / "models" / "loras" / f"bench-{seed}.safetensors")
        names.append(f"bench-{seed}.safetensors")
    return names


def load(model):
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    return model


def clock():
    """(seconds, processor seconds)."""
    return time.perf_counter(), time.process_time()


def print_ratios(title, target, spent):
    """Print the ratios of two times. spent: for each side a list of (seconds, processor seconds)."""
    (a, _), (b, _) = (map(statistics.median, zip(*side, strict=True)) for side in spent)
    wall, cpu = ([two[i] / one[i] for one, two in zip(*spent, strict=True)] for i in (0, 1))
    print(
        f"\n{title}: {a:.3f} s and {b:.3f} s, ratio {statistics.median(wall):.2f} ({min(wall):.2f} to "
        f"{max(wall):.2f}), "
        f"of processor time {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}), {len(wall)} rounds; "
        f"target {target}"
    )


def timed(work, times=1):
    """(seconds, processor seconds) of a call."""
    gc.collect()
    began = clock()
    for _ in range(times):
        work()
    return tuple((after - before) / times for before, after in zip(began, clock(), strict=True))


def race(title, target, theirs, ours, before):
    """Run two functions alternately, `before` each time; print the ratio of their times."""
    spent = ([], [])
    for turn in range(ROUNDS + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            before()
            took = timed((theirs, ours)[which])
            if turn:  # the first round warms up
                spent[which].append(took)
    print_ratios(title, target, spent)


def test_one_lora(run_node, model, files):
    def core():
        load(
            run_node("LoraLoader", model=model, clip=None, lora_name=files[0], strength_model=1.0, strength_clip=0.0)[0]
        )

    def ours():
        load(run_node("BespokeInjectLora", model=model, lora_name=files[0], strength_model=1.0)[0])

    race(
        "inject one LoRA, core's LoraLoader and Bespoke Inject LoRA, with merging",
        "at most 1.00",
        core,
        ours,
        lambda: load(model),
    )


def test_one_lora_without_merging(run_node, model, files):
    race(
        "the nodes alone, LoraLoader and Bespoke Inject LoRA",
        "none",
        lambda: run_node(
            "LoraLoader", model=model, clip=None, lora_name=files[0], strength_model=1.0, strength_clip=0.0
        ),
        lambda: run_node("BespokeInjectLora", model=model, lora_name=files[0], strength_model=1.0),
        lambda: None,
    )


def test_ten_loras(run_node, model, files):
    def core():
        at = model
        for name in files:
            at, _ = run_node("LoraLoader", model=at, clip=None, lora_name=name, strength_model=0.3, strength_clip=0.0)
        load(at)

    def ours():
        loras = {f"lora{i}": run_node("BespokeLoadLora", lora_name=name)[0] for i, name in enumerate(files)}
        lora, *_ = run_node("BespokeComposeLoras", loras=loras, strengths="0.3\n" * TEN)
        load(run_node("BespokeInjectLora", model=model, lora_name="none", lora=lora, strength_model=1.0)[0])

    race(
        "ten LoRAs, ten LoraLoaders and Bespoke Compose LoRAs with one Bespoke Inject LoRA, with merging",
        "at most 0.50",
        core,
        ours,
        lambda: load(model),
    )


def allocated_bytes():
    """Bytes of all CPU tensors in this process, each storage once."""
    gc.collect()
    alive = {}
    for candidate in gc.get_objects():
        if isinstance(candidate, torch.Tensor) and candidate.device.type == "cpu":
            storage = candidate.untyped_storage()
            alive[storage.data_ptr()] = storage.nbytes()
    return sum(alive.values())


def test_a_step_of_bypass_and_its_memory(run_node, model, files):
    merged, bypassed = (
        run_node("BespokeInjectLora", model=model, lora_name=files[0], strength_model=1.0, mode=mode)[0]
        for mode in ("merge", "bypass")
    )
    x, context, sigma = torch.randn(2, 4, CELLS, CELLS), torch.randn(2, 77, 768), torch.full((2,), 2.0)

    def step(at):
        with torch.inference_mode():
            return at.model.apply_model(x, sigma, c_crossattn=context)

    # The model is shared: each measurement loads one side and runs it once to warm up.
    spent = ([], [])
    for turn in range(ROUNDS):
        for which in (0, 1) if turn % 2 else (1, 0):
            at = load((merged, bypassed)[which])
            step(at)
            spent[which].append(timed(lambda at=at: step(at), 3))
    print_ratios(f"a step at {CELLS}x{CELLS} latents, batch 2, merged and bypass", "at most 1.10", spent)
    del merged, bypassed
    load(model)
    before = allocated_bytes()
    (bypassed,) = run_node("BespokeInjectLora", model=model, lora_name=files[0], strength_model=1.0, mode="bypass")[:1]
    step(load(bypassed))
    extra = allocated_bytes() - before
    size = sum(t.numel() * t.element_size() for t in safetensors.torch.load_file(_path(files[0])).values())
    print(
        f"memory of bypass: {extra / 2**20:.1f} MiB beyond the model, the LoRA's own {size / 2**20:.1f} MiB, ratio "
        f"{extra / size:.2f} (target at most 1)"
    )


def _path(name):
    import folder_paths

    return folder_paths.get_full_path("loras", name)

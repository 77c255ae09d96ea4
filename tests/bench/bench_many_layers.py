"""How the LoRA nodes' time grows with a file's layers: 371, 1,361 and 3,011 of rank 4, in kohya's names.

    python3 dev.py test -m bench tests/bench/bench_many_layers.py -s

Processor seconds on one thread: one Inject LoRA, chains of ten (merge, bypass), Compose LoRAs of ten, Inspect LoRA with
the model, and with a second LoRA. Printed beside each is the time for a layer: what is linear keeps it. The last line
has the exponents p of time ~ layers^p, fitted by least squares of the logarithms; 1 is linear.
"""

import math
import statistics
import time

import pytest
import tiny
import torch
from bespoke.training.layer_names.parts import split_key

pytestmark = pytest.mark.bench
DEPTHS = (3, 12, 27)  # of the transformers


def u_net(depth):
    config = {
        **tiny.SDXL,
        "channel_mult": [1, 1, 1],
        "transformer_depth": [0, 0, *[depth] * 4],
        "transformer_depth_output": [0, 0, 0, *[depth] * 6],
        "transformer_depth_middle": depth,
    }
    return tiny.patcher(config)


def kohyas(lora):
    named = {}
    for key, tensor in lora.items():
        layer, part = split_key(key.removeprefix("diffusion_model."))
        named[f"lora_unet_{layer.replace('.', '_')}{part}"] = tensor
    return named


def chain(run_node, model, lora, mode):
    for _ in range(10):
        model = run_node(
            "BespokeInjectLora", model=model, lora_name="none", lora=dict(lora), strength_model=1.0, mode=mode
        )[0]


def exponent(found):
    """The slope of log(seconds) over log(layers). found: [(layers, seconds)]."""
    layers, seconds = ([math.log(one) for one in column] for column in zip(*found, strict=True))
    return statistics.linear_regression(layers, seconds).slope


def test_time_by_layers(run_node, one_thread):
    found: dict[str, list[tuple[int, float]]] = {}
    for depth in DEPTHS:
        model = u_net(depth)
        layers = tiny.linear_layers(model, "")
        lora = kohyas(tiny.random_lora(layers))
        ten = {f"lora{i}": {key: tensor.clone() for key, tensor in lora.items()} for i in range(10)}
        works = {
            "inject": lambda: run_node(
                "BespokeInjectLora", model=model, lora_name="none", lora=dict(lora), strength_model=1.0
            ),
            "ten injected": lambda: chain(run_node, model, lora, "merge"),
            "ten in bypass": lambda: chain(run_node, model, lora, "bypass"),
            "ten composed": lambda: run_node("BespokeComposeLoras", loras=ten),
            "inspected": lambda: run_node("BespokeInspectLora", lora_name="none", lora=dict(lora), model=model),
            "compared": lambda: run_node(
                "BespokeInspectLora", lora_name="none", lora=dict(lora), compare_with=ten["lora1"]
            ),
        }
        words = []
        for name, work in works.items():
            began = time.process_time()
            work()
            spent = time.process_time() - began
            found.setdefault(name, []).append((len(layers), spent))
            words.append(f"{name} {spent:.2f} s ({1e3 * spent / len(layers):.2f} ms a layer)")
        print(f"\n{len(layers)} layers: {', '.join(words)}")
        assert torch.get_num_threads() == 1
    exponents = {name: exponent(each) for name, each in found.items()}
    print(f"\nexponents: {', '.join(f'{name} {value:.2f}' for name, value in exponents.items())}")
    assert max(exponents.values()) < 1.2

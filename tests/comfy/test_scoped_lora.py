"""The lora output of Inject LoRA: the file as the dials scope it, used by core's loader and by this pack's nodes."""

from __future__ import annotations

import random
from pathlib import Path

import families
import pytest
import tiny
import torch
from bespoke.nodes.bridge.models import target_layers
from bespoke.nodes.lora.match import match
from bespoke.nodes.lora.named_lora import NamedLora
from bespoke.training.layer_names.blocks import block_names
from bespoke.training.layer_names.spelling import COMFY_PREFIX
from family_checks import predict
from family_loras import lora_of
from helpers import max_difference

pytestmark = pytest.mark.usefixtures("comfyui")
ONE = {"lora_name": "none", "strength_model": 1.0}


def random_scope(model, seed):
    """Strengths of the projections, and blocks of which two have strengths of their own."""
    draw = random.Random(seed)
    config = model.model.model_config.unet_config
    layers = target_layers(model.model.diffusion_model, "attention + feed-forward")
    blocks = sorted({block_names(name, config)[0] for name in layers})
    chosen = draw.sample(blocks, min(2, len(blocks)))
    return {
        **{name: round(draw.uniform(-0.5, 1.5), 2) for name in ("query", "key", "value", "out")},
        "strength_model": round(draw.uniform(0.4, 1.2), 2),
        "strength_clip": round(draw.uniform(0.3, 0.9), 2),
        "blocks": ", ".join(["*", *(f"{name}:{draw.uniform(0, 1.5):.2f}" for name in chosen)]),
    }


def changes(patcher):
    """{key: what the patches add to a weight of zeros}, float64; for LoRAs alone, whose change needs no base."""
    import comfy.lora

    found = {}
    for key, patches in patcher.patches.items():
        zeros = torch.zeros(patcher.get_key_patches()[key][0][0].shape, dtype=torch.float64)
        found[key] = comfy.lora.calculate_weight(patches, zeros, key, intermediate_dtype=torch.float64)
    return found


def check_same(one, other):
    """The changes of two patchers are the same to 1e-6 of their size."""
    first, second = changes(one), changes(other)
    moving = {key for key, change in first.items() if float(change.norm()) > 0}
    assert moving
    assert moving == {key for key, change in second.items() if float(change.norm()) > 0}
    for key in moving:
        assert float((first[key] - second[key]).norm()) <= 1e-6 * float(first[key].norm()), key


FAST = ("flux", "z_image", "wan")  # fused layers, rows of their own, parts of the schedule


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in families.FAMILIES if name not in FAST)]
)
def test_the_scoped_file_in_cores_loader_is_the_injected_model(run_node, name):
    """Core's LoraLoader is the oracle: it adds the file's factors and knows no dials.

    The file has the names that Save LoRA gives it in each format; diffusers' of a U-Net, which core does not read, is
    read by Inject LoRA.
    """
    models = families.made(name)
    scope = random_scope(models[0], name)
    given = ONE | {"model": models[0], "clip": models[1], "lora": lora_of(models)} | scope
    ours, our_clip, _, _, lora = run_node("BespokeInjectLora", **given)
    plain, wanted = predict(models, models[0])[0], predict(models, ours)[0]
    movement = max_difference(wanted, plain)
    assert movement > 1e-3 * plain.abs().max()
    for form in ("comfy", "kohya", "diffusers"):
        if form == "diffusers" and name == "lumina2":  # diffusers reads no LoRA of it
            continue
        save = dict(lora=lora, filename_prefix=f"test/scoped-{name}-{form}", key_format=form, dtype="fp32")
        file, *_ = run_node("BespokeSaveLora", **save)
        loader = dict(model=models[0], clip=models[1], lora_name=file, strength_model=1.0, strength_clip=1.0)
        cores, core_clip, *_ = run_node("BespokeInjectLora" if form == "diffusers" else "LoraLoader", **loader)
        check_same(ours, cores)
        if our_clip.patcher.patches:
            check_same(our_clip.patcher, core_clip.patcher)
    assert max_difference(predict(models, cores)[0], wanted) < 1e-4 * movement


FUSED = "diffusion_model.double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr", "LoKr of large factors", "DoRA", "OFT", "full"])
@pytest.mark.parametrize("strengths", [{"strength_model": -0.6}, {"query": 0.5, "key": 0.0, "value": -1.5}])
def test_every_kind_keeps_its_strengths(run_node, kind, strengths):
    """Inject LoRA with the dials is the oracle: its arithmetic by kind is shown in test_inject_scope.py."""
    models = families.made("flux")
    layer = models[0].model.diffusion_model.get_submodule(FUSED.removeprefix(COMFY_PREFIX))
    rows, columns = layer.weight.shape
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return 0.2 * torch.randn(*shape, generator=generator)

    parts = {
        "LoRA": {"lora_up.weight": noise(rows, 4), "lora_down.weight": noise(4, columns), "alpha": torch.tensor(2.0)},
        "LoHa": {f"hada_w{n}_a": noise(rows, 3) for n in (1, 2)} | {f"hada_w{n}_b": noise(3, columns) for n in (1, 2)},
        "LoKr": {"lokr_w1": noise(4, 4), "lokr_w2_a": noise(rows // 4, 2), "lokr_w2_b": noise(2, columns // 4)},
        "LoKr of large factors": {"lokr_w1": noise(8, 8), "lokr_w2": noise(rows // 8, columns // 8)},
        "DoRA": {
            "lora_up.weight": noise(rows, 4),
            "lora_down.weight": noise(4, columns),
            "dora_scale": 1.1 * layer.weight.detach().norm(dim=1, keepdim=True),
        },
        "OFT": {"oft_blocks": noise(rows // 8, 8, 8)},
        "full": {"diff": noise(rows, columns), "diff_b": noise(rows)},
    }[kind]  # fmt: skip
    lora = {f"{FUSED}.{part}": tensor for part, tensor in parts.items()}
    ours, _, report, _, scoped = run_node("BespokeInjectLora", **ONE | strengths, model=models[0], lora=lora)
    again, *_ = run_node("BespokeInjectLora", **ONE, model=models[0], lora=scoped)
    plain, wanted, found = (predict(models, one)[0] for one in (models[0], ours, again))
    movement = max_difference(wanted, plain)
    assert movement > 1e-3 * plain.abs().max()
    assert max_difference(found, wanted) < 2e-4 * movement
    assert ("whole differences for this base" in report) == (kind in ("DoRA", "OFT"))
    name, *_ = run_node("BespokeSaveLora", lora=scoped, filename_prefix="test/kinds", dtype="fp32")
    file, *_ = run_node("LoraLoaderModelOnly", model=models[0], lora_name=name, strength_model=1.0)
    assert max_difference(predict(models, file)[0], wanted) < 2e-4 * movement


def test_a_file_in_parts_of_a_fused_layer_keeps_their_names(run_node):
    """diffusers' to_q, to_k and to_v of Flux, each with a strength of its own, in core's loader."""
    models = families.made("flux")
    width = models[0].model.diffusion_model.hidden_size
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for part in ("to_q", "to_k", "to_v"):
        at = f"transformer.transformer_blocks.0.attn.{part}"
        lora[f"{at}.lora_B.weight"] = torch.randn(width, 2, generator=generator)
        lora[f"{at}.lora_A.weight"] = torch.randn(2, width, generator=generator)
    ours, *_, scoped = run_node(
        "BespokeInjectLora", **ONE | {"strength_model": 0.7}, model=models[0], lora=lora, query=0.5, key=0.0, value=2.0
    )
    for form in ("kohya", "comfy"):
        name, *_ = run_node("BespokeSaveLora", lora=scoped, filename_prefix="test/parts", dtype="fp32", key_format=form)
        file, *_ = run_node("LoraLoaderModelOnly", model=models[0], lora_name=name, strength_model=1.0)
        check_same(ours, file)


def test_two_spellings_of_a_layer_both_stay(run_node):
    """kohya's and diffusers' spelling of one layer in one file: both count, as before."""
    model = tiny.patcher()
    (rows, columns) = tiny.linear_layers(model)["middle_block.1.transformer_blocks.0.attn2.to_k"]
    lora = {}
    for seed, at in enumerate(
        (
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
            "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k",
            "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k",
        )
    ):
        generator = torch.Generator().manual_seed(seed)
        lora[f"{at}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        lora[f"{at}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
    ours, *_, scoped = run_node("BespokeInjectLora", **ONE | {"strength_model": 0.5}, model=model, lora=lora)
    again, *_ = run_node("BespokeInjectLora", **ONE, model=model, lora=scoped)
    check_same(ours, again)


def test_the_text_encoders_part_is_scaled_without_a_clip(run_node):
    """strength_clip governs it, also where no clip is wired in: by hand, the up factor times the strength."""
    models = families.made("sd15")
    lora = lora_of(models)
    *_, scoped = run_node("BespokeInjectLora", **ONE, model=models[0], lora=lora, strength_clip=0.25)
    names = [key for key in lora if key.startswith("text_encoders") and key.endswith("lora_up.weight")]
    assert names
    for key in names:
        assert torch.equal(scoped[key], 0.25 * lora[key])
    *_, left_out = run_node("BespokeInjectLora", **ONE, model=models[0], lora=lora, strength_clip=0.0)
    assert not any(key.startswith("text_encoders") for key in left_out)


@pytest.mark.parametrize("flow", [False, True])
def test_a_range_goes_through_the_file(run_node, flow):
    """Inject LoRA's own start and end are the oracle: at 400 noise levels, and at the edges, the LoRA from the file
    acts where the dials let it act, and nowhere else."""
    from bespoke.nodes.lora.files import read_lora
    from bespoke.nodes.lora.injection.part import limited_to_part
    from bespoke.nodes.lora.injection.timing import Timing

    model = tiny.patcher(flow=flow)
    lora = tiny.random_lora(tiny.linear_layers(model), 2)
    given = ONE | {"model": model, "lora": lora, "start_percent": 0.2, "end_percent": 0.7}
    _, _, report, _, scoped = run_node("BespokeInjectLora", **given)
    assert "A file holds no start and end. The lora output proposes the timesteps" in report
    name, *_ = run_node("BespokeSaveLora", lora=scoped, filename_prefix="test/range", dtype="fp32")
    import folder_paths

    read = read_lora(Path(folder_paths.get_full_path("loras", name)))
    timing, lines = limited_to_part(Timing(), model, read)
    assert "so it acts there alone" in lines[0]
    sampling, dials = model.model.model_sampling, Timing(0.2, 0.7)
    percents = torch.linspace(0.001, 0.999, 400).tolist()
    inside = 0
    for percent in percents:
        sigma = torch.tensor(float(sampling.percent_to_sigma(percent)), dtype=torch.float32).item()
        wanted = dials.strength(sigma, sampling)
        inside += wanted
        # epsilon models count in whole timesteps: at the edge the range may reach one of a thousand further
        if min(abs(percent - 0.2), abs(percent - 0.7)) > (0 if flow else 1.5e-3):
            assert timing.strength(sigma, sampling) == wanted, percent
    assert inside == pytest.approx(200, abs=3)
    _, _, report, _, whole = run_node("BespokeInjectLora", **ONE, model=model, lora=read, use_range=False)
    assert limited_to_part(Timing(), model, whole)[0].always
    again = run_node("BespokeInjectLora", **ONE, model=model, lora=read)[4]
    assert limited_to_part(Timing(), model, again)[0].part == timing.part


def test_keyframes_are_named_in_the_report(run_node):
    model = tiny.patcher()
    lora = tiny.random_lora(tiny.linear_layers(model), 2)
    report = run_node("BespokeInjectLora", **ONE, model=model, lora=lora, keyframes="0.5:0.3")[2]
    assert "A file holds no keyframes: the lora output is without them." in report


def test_what_is_known_of_base_and_words_goes_into_the_file(run_node):
    """A LoRA that was made of a file keeps its trigger words and its base, without a run."""
    from bespoke.nodes.lora.files import as_file

    model = tiny.patcher()
    meta = {"modelspec.trigger_phrase": "teal", "ss_base_model_version": "sd_v1", "ss_steps": "7"}
    lora = NamedLora(tiny.random_lora(tiny.linear_layers(model), 2), "a", meta)
    *_, scoped = run_node("BespokeInjectLora", **ONE | {"strength_model": 0.5}, model=model, lora=lora)
    _, written = as_file(scoped, None, "title")
    assert (written["modelspec.trigger_phrase"], written["ss_base_model_version"]) == ("teal", "sd_v1")
    assert "ss_steps" not in written
    assert match(model, None, scoped).unmatched == []


def test_a_strength_of_0_leaves_nothing(run_node):
    model = tiny.patcher(tiny.SMALLEST)
    lora = tiny.random_lora(tiny.linear_layers(model), 2)
    *_, report, _, scoped = run_node("BespokeInjectLora", **ONE | {"strength_model": 0.0}, model=model, lora=lora)
    assert scoped == {}
    assert "The lora output is empty" in report


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("flow", [False, True])
def test_a_range_of_one_level_stays_one(flow, start, end):
    """Timing with the dials is the oracle at its own level of noise; elsewhere the LoRA does not act."""
    from bespoke.nodes.lora.injection.part import limited_to_part
    from bespoke.nodes.lora.injection.scoped import part_of_timing
    from bespoke.nodes.lora.injection.timing import Timing

    model = tiny.patcher(tiny.SMALLEST, flow=flow)
    sampling = model.model.model_sampling
    part = part_of_timing(Timing(start, end), model)
    read = limited_to_part(Timing(), model, NamedLora({}, "a", part.metadata()))[0]
    assert not read.always
    at = min(float(sampling.percent_to_sigma(start)), float(sampling.sigma_max))
    at = torch.tensor(at, dtype=torch.float32).item()
    assert read.strength(at, sampling) == 1.0
    far = float(sampling.percent_to_sigma(0.75 if start < 0.75 else 0.25))
    assert read.strength(far, sampling) == 0.0
    low, high = map(int, part.metadata()["modelspec.timestep_range"].split(","))
    assert 0 <= low < high <= 1000  # other programs draw from low <= timestep < high


def test_numbers_beyond_half_precision_are_named(run_node):
    """fp16 ends at 65504: what is above would be infinite in the file, and every picture black."""
    model = tiny.patcher(tiny.SMALLEST)
    lora = tiny.random_lora(tiny.linear_layers(model), 2)
    name = next(key for key in lora if key.endswith("lora_up.weight"))
    *_, scoped = run_node(
        "BespokeInjectLora", **ONE, model=model, lora=lora | {name: 7e4 * torch.ones_like(lora[name])}
    )
    with pytest.raises(ValueError, match="holds numbers up to 7e.04, and fp16 none above 65504; set dtype to bf16 or"):
        run_node("BespokeSaveLora", lora=scoped, filename_prefix="test/large", dtype="fp16")
    assert run_node("BespokeSaveLora", lora=scoped, filename_prefix="test/large", dtype="bf16")


@pytest.mark.parametrize("mode", ["merge", "bypass", "mask"])
def test_a_file_of_fp8_numbers_is_the_lora_of_these_numbers(run_node, mode):
    """The same numbers in fp32 are the oracle, in each way of applying them and in every format of the lora output."""
    models = families.made("flux")
    eighth = {
        key: tensor.to(torch.float8_e4m3fn) if tensor.ndim else tensor
        for key, tensor in lora_of(models, text=False).items()
    }
    given = ONE | {"model": models[0], "query": 0.5, "strength_model": 0.75, "mode": mode}
    if mode == "mask":
        given |= {"mode": "bypass", "mask": torch.ones(1, 8, 8)}
    found, wanted = (
        run_node("BespokeInjectLora", **given, lora=lora)
        for lora in (eighth, {key: tensor.float() for key, tensor in eighth.items()})
    )
    plain, expected = (predict(models, at)[0] for at in (models[0], wanted[0]))
    assert max_difference(expected, plain) > 1e-3
    assert max_difference(predict(models, found[0])[0], expected) < 1e-5 * max_difference(expected, plain)
    import folder_paths
    from safetensors.torch import load_file

    whole = run_node("BespokeInjectLora", **ONE, model=models[0], lora=eighth)[4]
    for form in ("kohya", "diffusers", "comfy"):
        files = []
        for lora in (
            whole,
            NamedLora({k: t.float() for k, t in whole.items()}, "a", {}, layer_names=whole.layer_names),
        ):
            name, *_ = run_node("BespokeSaveLora", lora=lora, filename_prefix="test/fp8", key_format=form, dtype="fp32")
            files.append(load_file(folder_paths.get_full_path("loras", name)))
        assert files[0].keys() == files[1].keys()
        assert all(torch.equal(tensor, files[1][key]) for key, tensor in files[0].items())

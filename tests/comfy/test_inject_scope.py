"""Scopes of a LoRA: blocks, projections, ranges of steps for every scheduler and keyframes, merged and in bypass."""

import itertools

import pytest
import tiny
import torch
from helpers import max_difference, weights_hash

RANK = 4


@pytest.fixture(scope="module")
def model(comfyui):
    return tiny.patcher()


@pytest.fixture(scope="module")
def lora(model):
    return tiny.random_lora(tiny.linear_layers(model), RANK)


@pytest.fixture(scope="module")
def inject(run_node, model, lora):
    """inject(...) -> the model with the LoRA; inject.report(...) -> the node's report."""

    def call(onto=None, adapter=None, **inputs):
        inputs = {"lora_name": "none", "strength_model": 1.0, "lora": lora if adapter is None else adapter, **inputs}
        return run_node("BespokeInjectLora", model=model if onto is None else onto, **inputs)

    def injected(*args, **inputs):
        return call(*args, **inputs)[0]

    injected.report = lambda **inputs: call(**inputs)[2]
    return injected


@pytest.fixture(scope="module")
def base(model):
    return tiny.predict(model)


def without(lora, *words):
    return {key: value for key, value in lora.items() if not any(word in key for word in words)}


@pytest.mark.parametrize("mode", ["merge", "bypass"])
@pytest.mark.parametrize(
    ("scope", "removed"),
    [
        ({"query": 0.0}, ("to_q",)),
        ({"value": 0.0, "out": 0.0}, ("to_v", "to_out")),
        ({"blocks": "*, mid:0"}, ("middle_block",)),
        ({"blocks": "down, up"}, ("middle_block",)),
        ({"blocks": "mid, up"}, ("input_blocks",)),
        ({"blocks": "*, down.0:0, in.4:0"}, ("input_blocks.1.", "input_blocks.2.", "input_blocks.4.")),
        ({"blocks": "*, up.1-2:0"}, tuple(f"output_blocks.{n}." for n in (3, 4, 5, 6, 7, 8))),
    ],
)
def test_strength_0_is_the_lora_without_those_keys(inject, lora, base, mode, scope, removed):
    scoped = tiny.predict(inject(mode=mode, **scope))
    expected = tiny.predict(inject(adapter=without(lora, *removed), mode=mode))
    movement = max_difference(expected, base)
    assert movement > 1e-2
    assert max_difference(scoped, expected) < 1e-5 * movement
    assert max_difference(scoped, tiny.predict(inject(mode=mode))) > 1e-2 * movement


@pytest.mark.parametrize("mode", ["merge", "bypass"])
def test_halves_add_to_the_whole_and_three_commute(inject, lora, model, base, mode):
    whole = tiny.predict(inject(mode=mode))
    half = inject(strength_model=0.5, mode=mode)
    movement = max_difference(whole, base)
    assert max_difference(tiny.predict(inject(half, strength_model=0.5, mode=mode)), whole) < 1e-4 * movement
    layers = tiny.linear_layers(model)
    three = [tiny.random_lora(layers, rank, seed=seed) for rank, seed in ((2, 1), (4, 2), (8, 3))]
    outputs = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        at = model
        for i in order:
            at = inject(at, three[i], strength_model=0.4, mode=mode)
        outputs.append(tiny.predict(at))
    assert max_difference(outputs[0], base) > 0.1 * movement
    assert max(max_difference(outputs[0], other) for other in outputs[1:]) < 1e-4 * max_difference(outputs[0], base)


def test_bypass_agrees_with_merge(inject, base):
    for scope in ({}, {"strength_model": -0.7, "key": 0.3, "blocks": "down.1, mid:2, up.*:0.5"}):
        merged, bypassed = tiny.predict(inject(**scope)), tiny.predict(inject(mode="bypass", **scope))
        assert max_difference(merged, base) > 1e-2
        assert max_difference(merged, bypassed) < 1e-3 * max_difference(merged, base)


def test_bespoke_and_core_loras_add_up_in_any_order(inject, run_node, model, base):
    layers = tiny.linear_layers(model)
    loras = [tiny.random_lora(layers, 4, seed=seed) for seed in range(4)]

    def core(at, lora, bypass):
        return run_node("LoraModelLoader", model=at, lora=lora, strength_model=0.5, bypass=bypass)[0]

    def ours(at, lora, mode):
        return inject(at, lora, strength_model=0.5, mode=mode)

    ways = (
        lambda at, lora: core(at, lora, False),
        lambda at, lora: core(at, lora, True),
        lambda at, lora: ours(at, lora, "merge"),
        lambda at, lora: ours(at, lora, "bypass"),
    )
    expected = model
    for lora in loras:
        expected = core(expected, lora, False)
    expected = tiny.predict(expected)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (3, 3, 1, 3), (3, 1, 2, 3)):
        at = model
        for lora, way in zip(loras, order, strict=True):
            at = ways[way](at, lora)
        assert max_difference(tiny.predict(at), expected) < 1e-3 * max_difference(expected, base)
        assert torch.equal(tiny.predict(model), base), "the model was changed"


@pytest.mark.parametrize("way", [{}, {"mode": "bypass"}, {"end_percent": 0.5}])
def test_the_base_is_untouched_bit_for_bit(inject, way):
    import comfy.model_management

    model = tiny.patcher(seed=7)
    base, before = tiny.predict(model), weights_hash(model.model)
    patched = inject(model, **way)
    assert max_difference(tiny.predict(patched, sigma=20.0), tiny.predict(model, sigma=20.0)) > 1e-2
    # Deleting a clone while its sibling is in use ejects nothing of the sibling.
    seen = tiny.predict(patched)
    clone = inject(patched, strength_model=0.3, mode="bypass")
    del clone
    assert torch.equal(tiny.predict(patched), seen)
    comfy.model_management.unload_all_models()
    assert weights_hash(model.model) == before
    assert torch.equal(tiny.predict(model), base)
    assert not model.patches
    assert not model.injections
    for layer in model.model.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks
        assert "forward" not in vars(layer)
        assert not getattr(layer, "weight_function", None)


def test_other_kinds_in_bypass_equal_the_merged_weight(inject, model, base):
    """LoHa, LoKr, DoRA and full differences, in bypass and in a range of steps."""
    generator = torch.Generator().manual_seed(5)

    def randn(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    mixed = {}
    for i, (name, (rows, columns)) in enumerate(tiny.linear_layers(model).items()):
        at = f"diffusion_model.{name}."
        if i % 4 == 0:
            mixed |= {f"{at}hada_w{n}_a": randn(rows, 3) for n in "12"} | {
                f"{at}hada_w{n}_b": randn(3, columns) for n in "12"
            }
        elif i % 4 == 1:
            mixed |= {
                f"{at}lokr_w1": randn(4, 4),
                f"{at}lokr_w2_a": randn(rows // 4, 2),
                f"{at}lokr_w2_b": randn(2, columns // 4),
            }
        elif i % 4 == 2:
            mixed |= {
                f"{at}lora_up.weight": randn(rows, 2),
                f"{at}lora_down.weight": randn(2, columns),
                f"{at}dora_scale": 1 + randn(rows, 1),
            }
        else:
            mixed |= {f"{at}diff": randn(rows, columns)}
    merged = tiny.predict(inject(adapter=mixed, strength_model=0.8))
    assert max_difference(merged, base) > 1e-2
    for way in ({"mode": "bypass"}, {"end_percent": 0.999}):
        assert max_difference(
            tiny.predict(inject(adapter=mixed, strength_model=0.8, **way)), merged
        ) < 1e-3 * max_difference(merged, base)
    assert torch.equal(tiny.predict(inject(adapter=mixed, start_percent=0.999)), base)
    assert "made anew at every call" in inject.report(adapter=mixed, mode="bypass")


def schedulers():
    import comfy.samplers

    return comfy.samplers.KSampler.SCHEDULERS


@pytest.mark.parametrize("flow", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_range_is_exactly_the_steps_whose_sigma_lies_in_it(inject, flow, monkeypatch):
    """Through KSampler for every scheduler: each model call equals that with the LoRA or without, by its sigma."""
    import comfy.model_management
    import comfy.utils
    import nodes

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)
    start, end, steps = 0.2, 0.7, 9
    bare = tiny.patcher(flow=flow)
    ranged, whole = inject(bare, start_percent=start, end_percent=end), inject(bare)
    sampling = bare.model.model_sampling
    high, low = (torch.tensor(float(sampling.percent_to_sigma(p)), dtype=torch.float32) for p in (start, end))
    text = [[torch.ones(1, 7, tiny.CONTEXT), {}]]
    crossed = 0
    for scheduler in schedulers():
        calls = []

        def record(apply, seen, calls=calls):
            out = apply(seen["input"], seen["timestep"], **seen["c"])
            calls.append((seen["input"].clone(), seen["timestep"].clone(), seen["c"], out.clone()))
            return out

        recorded = ranged.clone()
        recorded.set_model_unet_function_wrapper(record)
        with torch.inference_mode():
            nodes.common_ksampler(
                recorded, 3, steps, 1.0, "euler", scheduler, text, text, {"samples": torch.zeros(1, 4, 4, 4)}
            )
            answers = {}
            for name, other in (("out", bare), ("in", whole)):
                comfy.model_management.load_models_gpu([other])
                answers[name] = [other.model.apply_model(x, t, **c) for x, t, c, _ in calls]
        active = [bool(low <= t[0] <= high) for _, t, _, _ in calls]
        for step, (_, _, _, out) in enumerate(calls):
            difference = max_difference(answers["in"][step], answers["out"][step])
            assert max_difference(out, answers["in" if active[step] else "out"][step]) < 1e-3 * difference, (
                scheduler,
                step,
            )
        assert calls, scheduler
        crossed += any(active) and not all(active)
    # linear_quadratic on a model of SD1.5's kind skips the range; all others have steps inside and outside of it.
    assert crossed >= len(schedulers()) - 1


def test_keyframes_hold_until_the_next(inject, base, model):
    frames = inject(keyframes="0.3:0.5, 60%:0, 0.8:-1")
    sampling = model.model.model_sampling
    for percent, strength in (
        (0.1, 1.0),
        (0.29, 1.0),
        (0.31, 0.5),
        (0.59, 0.5),
        (0.61, 0.0),
        (0.81, -1.0),
        (0.99, -1.0),
    ):
        sigma = float(sampling.percent_to_sigma(percent))
        expected = tiny.predict(inject(strength_model=strength), sigma=sigma)
        bare = tiny.predict(model, sigma=sigma)
        assert max_difference(tiny.predict(frames, sigma=sigma), expected) <= 1e-3 * max_difference(expected, bare), (
            percent
        )


def test_a_range_holds_no_second_copy_of_the_weights(inject, model, lora):
    """The injected model keeps the LoRA's tensors, and no backup of the weights as a merge does."""
    patched = inject(keyframes="0:1, 0.5:0.2", mode="merge")
    tiny.predict(patched)
    assert not patched.backup
    assert not patched.patches
    merged = inject()
    tiny.predict(merged)
    assert len(merged.backup) == len(tiny.linear_layers(model))


def test_report_of_a_scope(inject):
    report = inject.report(blocks="down.1, mid, up.*:0.5", end_percent=0.5)
    assert "down.1 at 1: 16 of 128 layers" in report
    assert "mid at 1: 8 of 128 layers" in report
    assert "up.* at 0.5: 72 of 128 layers" in report
    assert "from 0% to 50% of the denoising" in report
    assert "beside the weights" in report
    assert "alpha 2: it acts at alpha/rank = 0.5" in report


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"blocks": "down.7"}, "blocks names 'down.7', which this model does not have; it has time, conv_in, down.0"),
        ({"blocks": "up.1:a"}, "blocks has 'up.1:a'"),
        ({"keyframes": "0.5"}, "keyframes has '0.5'"),
        ({"keyframes": "0.5:1, 0.2:0"}, "rising order"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "exchange them"),
        ({"mode": "melt"}, "mode is 'melt'"),
        ({"strength_model": float("nan")}, "strength_model is nan"),
        ({"query": float("inf")}, "query is inf"),
    ],
)
def test_bad_scopes_are_named(inject, inputs, words):
    with pytest.raises(ValueError, match="^Bespoke Inject LoRA: ") as error:
        inject(**inputs)
    assert words in str(error.value)


FUSED = "double_blocks.0.img_attn.qkv"


def fused_loras(weight):
    """LoRAs of Flux's fused layer that are no two plain factors."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = weight.shape

    def noise(*shape):
        return 0.1 * torch.randn(*shape, generator=generator)

    name = f"diffusion_model.{FUSED}"
    factors = {f"{name}.lora_up.weight": noise(rows, 4), f"{name}.lora_down.weight": noise(4, columns)}
    return {
        "LoKr": {f"{name}.lokr_w1": noise(4, 4), f"{name}.lokr_w2": noise(rows // 4, columns // 4)},
        "DoRA": {**factors, f"{name}.dora_scale": 1.1 * weight.norm(dim=1, keepdim=True)},
        "OFT": {f"{name}.oft_blocks": noise(rows // 8, 8, 8)},
        "full": {f"{name}.diff": noise(rows, columns), f"{name}.diff_b": noise(rows)},
    }


@pytest.mark.parametrize("mode", ["merge", "bypass"])
@pytest.mark.parametrize("kind", ["LoKr", "DoRA", "OFT", "full"])
@pytest.mark.parametrize("strengths", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.0, 1.0, 1.0), (0.0, 2.0, -1.0)])
def test_projections_of_a_fused_layer_in_every_kind(run_node, flux, mode, kind, strengths):
    """By hand: query, key and value are a third of the rows each, so the output's change is that of the whole LoRA
    times the strength of its third. The report said that they cannot be told apart, and all three were applied whole.
    """
    import comfy.model_management

    model = flux[0]
    layer = model.model.diffusion_model.get_submodule(FUSED)
    lora = fused_loras(layer.weight.detach())[kind]
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))

    def output(at):
        comfy.model_management.load_models_gpu([at])
        with torch.inference_mode():
            return layer(x).clone()

    def change(**scope):
        inputs = {"model": model, "lora_name": "none", "lora": lora, "strength_model": 1.0, "mode": mode}
        patched, _, report, *_ = run_node("BespokeInjectLora", **inputs, **scope)
        assert "told apart" not in report
        return output(patched) - bare

    bare = output(model)
    whole = change()
    wanted = whole * torch.tensor(strengths).repeat_interleave(layer.out_features // 3)
    got = change(**dict(zip(("query", "key", "value"), strengths, strict=True)))
    output(model)
    assert whole.norm() > 0.01 * bare.norm()
    assert (got - wanted).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("modes", list(itertools.product(("merge", "bypass"), repeat=3)))
def test_each_lora_reads_the_base_in_every_mixture_of_modes(run_node, flux, order, modes):
    """By hand: the sum of what a LoRA, a DoRA and a rotation add to the bare weight. In bypass, DoRA and rotation read
    the weight with the LoRAs that were merged into it, up to 28 % of the movement off.
    """
    import comfy.model_management

    model = flux[0]
    layer = model.model.diffusion_model.get_submodule(FUSED)
    comfy.model_management.load_models_gpu([model])
    weight = layer.weight.detach().clone()
    kinds, strengths = fused_loras(weight), (0.7, 0.8, 0.5)
    up, down, magnitude = kinds["DoRA"].values()
    rotation = next(iter(kinds["OFT"].values()))
    name = f"diffusion_model.{FUSED}"
    plain = {f"{name}.lora_up.weight": up.flip(0), f"{name}.lora_down.weight": down}
    changed = weight + up @ down
    skew, one = rotation - rotation.transpose(1, 2), torch.eye(rotation.shape[-1])
    turns = torch.block_diag(*((one + skew) @ torch.linalg.inv(one - skew)).transpose(1, 2))
    changes = (
        up.flip(0) @ down,
        magnitude * changed / changed.norm(dim=1, keepdim=True) - weight,
        turns @ weight - weight,
    )
    wanted = sum(strength * change for strength, change in zip(strengths, changes, strict=True))
    at = model
    for i in order:
        lora = (plain, kinds["DoRA"], kinds["OFT"])[i]
        inputs = {"lora_name": "none", "lora": lora, "strength_model": strengths[i], "mode": modes[i]}
        at = run_node("BespokeInjectLora", model=at, **inputs)[0]
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        bare = layer(x).clone()
        comfy.model_management.load_models_gpu([at])
        got = layer(x).clone() - bare
        comfy.model_management.load_models_gpu([model])
    assert (got - x @ wanted.t()).norm() < 1e-5 * (x @ wanted.t()).norm()

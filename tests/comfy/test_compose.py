"""Composition and inspection of LoRAs: the sum, the energy that a rank keeps, the heatmap's cosines and sizes."""

import json
import math

import pytest
import safetensors.torch
import tiny
import torch
from bespoke.nodes.lora import kinds, lowrank
from bespoke.nodes.lora.composition.compose import compose as compose_sources
from bespoke.nodes.lora.composition.methods import How
from bespoke.nodes.lora.composition.source import Source
from bespoke.nodes.lora.inspection import heatmap
from bespoke.nodes.lora.inspection.inspect import inspect
from bespoke.nodes.lora.inspection.report import report as inspection_report
from bespoke.nodes.lora.named_lora import NamedLora
from bespoke.training.layer_names.parts import layers_of
from helpers import max_difference


@pytest.fixture(scope="module")
def model(comfyui):
    return tiny.patcher()


@pytest.fixture(scope="module")
def layers(model):
    return tiny.linear_layers(model)


@pytest.fixture(scope="module")
def loras(layers):
    return [
        tiny.random_lora(layers, rank, alpha, seed)
        for seed, (rank, alpha) in enumerate(((2, 1.0), (3, None), (4, 6.0)))
    ]


def compose(run_node, loras, **inputs):
    return run_node("BespokeComposeLoras", loras={f"lora{i}": lora for i, lora in enumerate(loras)}, **inputs)


def composed(loras, strengths, rank):
    return compose_sources([Source(*pair) for pair in zip(loras, strengths, strict=True)], How(rank))


def bare(model):
    """The model's weights without merged patches."""
    tiny.predict(model)
    return model.model.state_dict()


def inject(run_node, model, lora, strength=1.0):
    return run_node("BespokeInjectLora", model=model, lora_name="none", lora=lora, strength_model=strength)[0]


def delta(parts):
    """A layer's delta by ComfyUI's own adapters, on a base of zeros."""
    import comfy.lora

    shape = kinds.factors("x", parts).shape
    (adapter,) = comfy.lora.load_lora(
        {f"x{part}": tensor for part, tensor in parts.items()}, {"x": "x.weight"}
    ).values()
    return comfy.lora.calculate_weight([(1.0, adapter, 1.0, None, None)], torch.zeros(shape), "x")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


KINDS = {
    "LoRA": {".lora_up.weight": randn(12, 3), ".lora_down.weight": randn(3, 8), ".alpha": torch.tensor(2.0)},
    "LoHa": {
        ".hada_w1_a": randn(12, 3),
        ".hada_w1_b": randn(3, 8),
        ".hada_w2_a": randn(12, 3, seed=1),
        ".hada_w2_b": randn(3, 8, seed=1),
        ".alpha": torch.tensor(1.5),
    },
    "LoKr": {
        ".lokr_w1": randn(3, 4),
        ".lokr_w2_a": randn(4, 2),
        ".lokr_w2_b": randn(2, 2),
        ".alpha": torch.tensor(4.0),
    },
    "LoKr whole": {".lokr_w1": randn(4, 2), ".lokr_w2": randn(3, 4)},
    "LoKr both": {
        ".lokr_w1_a": randn(3, 1),
        ".lokr_w1_b": randn(1, 2),
        ".lokr_w2_a": randn(4, 2),
        ".lokr_w2_b": randn(2, 4),
        ".alpha": torch.tensor(3.0),
    },
    "full": {".diff": randn(12, 8)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_what_comfyuis_adapters_make(kind, comfyui):
    made = kinds.factors("x", KINDS[kind])
    expected = delta(KINDS[kind])
    assert expected.abs().max() > 0.1
    assert torch.allclose(made.up @ made.down, expected, atol=1e-5)
    assert float(lowrank.inner_products([made]).sqrt()) == pytest.approx(float(expected.norm()), rel=1e-5)
    values = torch.linalg.svdvals(expected)
    assert torch.allclose(lowrank.spectrum(made)[: len(values)], values[: made.rank], atol=1e-4)


@pytest.mark.parametrize("tucker", [False, True])
def test_factors_of_convolutions(tucker, comfyui):
    import comfy.lora

    parts = {".lora_up.weight": randn(6, 3, 1, 1), ".lora_down.weight": randn(3, 5, 3, 3), ".alpha": torch.tensor(2.0)}
    if tucker:
        parts |= {".lora_down.weight": randn(3, 5, 1, 1), ".lora_mid.weight": randn(3, 3, 3, 3)}
    made = kinds.factors("x", parts)
    assert made.kernel == (3, 3)
    (adapter,) = comfy.lora.load_lora({f"x{part}": t for part, t in parts.items()}, {"x": "x.weight"}).values()
    expected = comfy.lora.calculate_weight([(1.0, adapter, 1.0, None, None)], torch.zeros(6, 5, 3, 3), "x")
    assert torch.allclose((made.up @ made.down).view(6, 5, 3, 3), expected, atol=1e-4)


def test_the_sum_moves_the_model_as_the_loras_in_a_row(run_node, model, loras):
    base = tiny.predict(model)
    strengths = (0.8, -0.5, 0.3)
    row = model
    for lora, strength in zip(loras, strengths, strict=True):
        row = inject(run_node, row, lora, strength)
    lora, report, heatmap = compose(run_node, loras, strengths="0.8\n-0.5\n0.3")
    (core,) = run_node("LoraModelLoader", model=model, lora=lora, strength_model=1.0, bypass=False)
    expected = tiny.predict(row)
    assert max_difference(expected, base) > 1e-2
    for composed in (inject(run_node, model, lora), core):
        assert max_difference(tiny.predict(composed), expected) < 1e-4 * max_difference(expected, base)
    assert "the ranks added, 9 in a layer" in report
    assert heatmap.shape[-1] == 3
    assert float(heatmap.std()) > 0.02


def test_kinds_and_spellings_of_one_layer_are_merged(run_node, model):
    """The sum of kohya's two spellings and ComfyUI's, LoHa, LoKr, a full difference and a bias."""
    layer, at = (
        "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0",
    )
    width = tiny.WIDTH
    files = [
        {
            f"diffusion_model.{layer}.lora_up.weight": randn(width, 2),
            f"diffusion_model.{layer}.lora_down.weight": randn(2, width),
        },
        {
            f"{at}.hada_w{n}_{side}": randn(*((width, 2) if side == "a" else (2, width)), seed=int(n))
            for n in "12"
            for side in "ab"
        },
        {
            f"lora_unet_{layer.replace('.', '_')}.lokr_w1": randn(4, 4),
            f"lora_unet_{layer.replace('.', '_')}.lokr_w2": randn(width // 4, width // 4),
        },
        {f"{at}.diff": randn(width, width), f"{at}.diff_b": randn(width)},
        {
            f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0.lora_{side}.weight": randn(
                *shape, seed=5
            )
            for side, shape in (("A", (3, width)), ("B", (width, 3)))
        },
    ]
    base, row = tiny.predict(model), model
    for lora in files:
        row = inject(run_node, row, lora, 0.3)
    lora, report, _ = compose(run_node, files, strengths="0.3\n" * 5)
    assert len(layers_of(lora)) == 1
    assert "1 layers" in report
    expected = tiny.predict(row)
    assert max_difference(expected, base) > 1e-2
    assert max_difference(tiny.predict(inject(run_node, model, lora)), expected) < 1e-4 * max_difference(expected, base)


@pytest.mark.parametrize("mode", ["merge", "bypass"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_layer_under_two_names_in_one_file_counts_twice(run_node, model, mode, reverse):
    """By hand: the sum of two files that are joined to one. kohya's alpha is not that of PEFT's factors, which had
    kohya's name after loading and took its place.
    """
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"
    kohya, theirs, width = f"lora_unet_{module.replace('.', '_')}", f"unet.{module}", tiny.WIDTH
    first = {
        f"{kohya}.lora_up.weight": randn(width, 2, seed=1),
        f"{kohya}.lora_down.weight": randn(2, width, seed=2),
        f"{kohya}.alpha": torch.tensor(0.5),
    }
    second = {
        f"{theirs}.lora_A.weight": randn(3, width, seed=3),
        f"{theirs}.lora_B.weight": randn(width, 3, seed=4),
    }
    both = second | first if reverse else first | second
    base = tiny.predict(model)
    expected = tiny.predict(inject(run_node, inject(run_node, model, first), second))
    inputs = {"model": model, "lora_name": "none", "lora": both, "strength_model": 1.0, "mode": mode}
    movement = max_difference(expected, base)
    assert movement > 1e-2
    assert max_difference(tiny.predict(run_node("BespokeInjectLora", **inputs)[0]), expected) < 1e-4 * movement


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_copy_in_another_dialect_is_the_same_layer(run_node, sd3, order):
    """A LoRA and its copy with kohya's underscores have the cosine 1, and the sum has each layer once."""
    layers = tiny.linear_layers(sd3[0])
    lora = tiny.random_lora(layers)
    copy = {
        "lora_unet_" + layer.removeprefix("diffusion_model.").replace(".", "_") + part: tensor
        for layer, parts in layers_of(lora).items()
        for part, tensor in parts.items()
    }
    total, report, _ = compose(run_node, [(lora, copy)[i] for i in order])
    assert len(layers_of(total)) == len(layers)
    assert "cosine 1.00" in report


def test_text_encoders_of_both_kinds_add_up(run_node, model):
    encoder = tiny.clip(two=True)
    width, files = tiny.CONTEXT, []
    for seed, names in enumerate(
        (
            ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "lora_te2_text_model_encoder_layers_1_mlp_fc1"),
            (
                "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
                "text_encoder_2.text_model.encoder.layers.1.mlp.fc1",
            ),
        )
    ):
        lora = tiny.random_lora(
            {"input_blocks.1.1.transformer_blocks.0.attn2.to_q": (tiny.WIDTH, tiny.WIDTH)}, seed=seed
        )
        for name, out in zip(names, (width, 2 * width), strict=True):
            lora |= {
                f"{name}.lora_up.weight": randn(out, 2, seed=seed),
                f"{name}.lora_down.weight": randn(2, width, seed=seed) / 10,
            }
        files.append(lora)

    def encoded(loras):
        at = encoder
        for lora in loras:
            at = run_node("BespokeInjectLora", model=model, clip=at, lora_name="none", lora=lora, strength_model=1.0)[1]
        return tiny.encode(at)

    lora, *_ = compose(run_node, files)
    assert len(layers_of(lora)) == 3
    base, expected = tiny.encode(encoder), encoded(files)
    assert max_difference(expected, base) > 1e-2
    assert max_difference(encoded([lora]), expected) < 1e-3 * max_difference(expected, base)


def test_a_rank_keeps_the_energy_that_the_report_names(run_node, loras):
    exact, *_ = compose(run_node, loras)
    lora, report, _ = compose(run_node, loras, rank=5)
    whole = kept = 0.0
    for layer, parts in layers_of(exact).items():
        full = kinds.factors(layer, parts)
        values = torch.linalg.svdvals((full.up @ full.down).double())
        near = kinds.factors(layer, layers_of(lora)[layer])
        assert near.rank == 5
        error = float(((full.up @ full.down) - (near.up @ near.down)).double().square().sum())
        assert error == pytest.approx(float((values[5:] ** 2).sum()), rel=1e-3)  # the optimum of rank 5 (Eckart-Young)
        whole += float((values**2).sum())
        kept += float((values[:5] ** 2).sum())
    assert f"Rank 5 of 9: {len(layers_of(exact))} layers" in report
    assert f"It keeps {100 * kept / whole:.2f} % of the energy" in report
    again, report, _ = compose(run_node, [lora], rank=5)
    assert "It keeps all of the energy" in report
    for layer, parts in layers_of(again).items():
        one, two = kinds.factors(layer, parts), kinds.factors(layer, layers_of(lora)[layer])
        assert torch.allclose(one.up @ one.down, two.up @ two.down, atol=1e-5)


def test_no_layer_gets_a_higher_rank_than_its_shorter_side(run_node, layers):
    files = [tiny.random_lora(layers, 20, seed=seed) for seed in range(3)]
    lora, report, _ = compose(run_node, files)
    for layer, parts in layers_of(lora).items():
        made = kinds.factors(layer, parts)
        assert made.rank == min(60, *made.shape)
        whole = sum((f := kinds.factors(layer, layers_of(one)[layer])).up @ f.down for one in files)
        assert (made.up @ made.down - whole).norm() < 1e-5 * whole.norm()
    assert "exact sum" in report


def test_cosines_are_those_of_the_whole_deltas(layers):
    """Against the matrices: the same LoRA, its negative, an unrelated one, one that shares only a block."""
    one, other = (NamedLora(tiny.random_lora(layers, 4, seed=seed), str(seed), {}) for seed in (1, 2))
    part = NamedLora({key: tensor for key, tensor in one.items() if "middle_block" in key}, "part", {})
    done = composed([one, one, other, part], [1.0, -0.5, 1.0, 2.0], 0)
    cosines = done.overlap.cosines("mid")
    assert cosines[0, 1] == pytest.approx(-1.0)
    assert cosines[0, 3] == pytest.approx(1.0)
    assert done.overlap.cosines("in.1 (down.0)")[0, 3].isnan()

    def whole(lora, part_of_name):
        return torch.cat(
            [
                (f.up @ f.down).flatten()
                for layer, parts in layers_of(lora).items()
                if part_of_name in layer
                for f in [kinds.factors(layer, parts)]
            ]
        ).double()

    for part_of_name, row in (("middle_block", "mid"), ("output_blocks.5.", "out.5 (up.1)"), ("", None)):
        a, b = whole(one, part_of_name), whole(other, part_of_name)
        assert done.overlap.cosines(row)[0, 2] == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-6)
    expected = float(whole(one, "").norm() and whole(part, "").norm() / whole(one, "").norm())
    assert done.overlap.cosines()[0, 3] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("strengths", "words"),
    [
        ([1.0, 1.0], "A and B strongly push the same way, most in mid (cosine 1.00)"),
        ([1.0, -1.0], "A and B strongly push against each other, most in mid (cosine -1.00)"),
    ],
)
def test_interference_names_pair_and_block(layers, strengths, words):
    one = NamedLora(tiny.random_lora(layers, 4, seed=1), "one", {})
    two = NamedLora({key: tensor for key, tensor in one.items() if "middle_block" in key}, "two", {})
    assert words in composed([one, two], strengths, 0).report
    disjoint = NamedLora({key: tensor for key, tensor in one.items() if "output_blocks" in key}, "disjoint", {})
    assert "Interference: none, no block is changed by two of them." in composed([two, disjoint], [1.0, 1.0], 0).report
    other = NamedLora(tiny.random_lora({f"{n}": (1280, 1280) for n in layers}, 2, seed=9), "other", {})
    again = NamedLora(tiny.random_lora({f"{n}": (1280, 1280) for n in layers}, 2, seed=8), "again", {})
    assert "Interference: hardly any" in composed([other, again], [1.0, 1.0], 0).report


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"strengths": "1\n2"}, "strengths has 2 numbers for 3 LoRAs"),
        ({"strengths": "1\nx\n2"}, "strengths has 'x'"),
        ({"strengths": "1\nnan\n2"}, "strengths has 'nan'"),
        ({"strengths": "0\n0\n0"}, "all strengths are 0"),
        ({"rank": -1}, "rank is -1"),
        ({"loras": {}}, "no LoRA is wired in"),
    ],
)
def test_bad_inputs_are_named(run_node, loras, inputs, words):
    wired = {f"lora{i}": lora for i, lora in enumerate(loras)}
    with pytest.raises(ValueError, match="^Bespoke Compose LoRAs: ") as error:
        run_node("BespokeComposeLoras", **({"loras": wired} | inputs))
    assert words in str(error.value)


def test_kinds_that_cannot_be_summed_are_refused(run_node, loras, layers):
    (name, (rows, _)), *_ = layers.items()
    dora = loras[0] | {f"diffusion_model.{name}.dora_scale": torch.ones(rows, 1)}
    with pytest.raises(ValueError, match=f"{name} is DoRA, which depends on the base's own weights"):
        compose(run_node, [loras[1], dora])
    oft = {f"diffusion_model.{name}.oft_blocks": torch.zeros(4, rows // 4, rows // 4)}
    with pytest.raises(ValueError, match=f"{name} is OFT"):
        compose(run_node, [oft])
    wide = {
        key: torch.cat([tensor, tensor], -1) if key.endswith("down.weight") else tensor
        for key, tensor in loras[1].items()
    }
    with pytest.raises(ValueError, match="compose LoRAs of one base only"):
        compose(run_node, [loras[0], wide])


def test_trigger_words_and_base_are_kept(comfyui, layers):
    metas = (
        {"modelspec.trigger_phrase": "teal", "ss_base_model_version": "sd_v1"},
        {"modelspec.trigger_phrase": "ring", "ss_base_model_version": "sd_v1"},
    )
    done = composed(
        [NamedLora(tiny.random_lora(layers, 2, seed=i), f"n{i}", meta) for i, meta in enumerate(metas)], [1.0, 1.0], 0
    )
    assert done.lora.meta == {"modelspec.trigger_phrase": "teal, ring", "ss_base_model_version": "sd_v1"}
    mixed = [
        NamedLora(tiny.random_lora(layers, 2), "a", metas[0]),
        NamedLora(tiny.random_lora(layers, 2), "b", {"ss_base_model_version": "sdxl_base_v1-0"}),
    ]
    assert "a: SD1.5, b: SDXL" in composed(mixed, [1.0, 1.0], 0).report


def test_the_sum_round_trips_through_a_file(run_node, loras, model):
    lora, *_ = compose(run_node, loras)
    for key_format in ("kohya", "comfy"):
        name, *_ = run_node(
            "BespokeSaveLora", lora=lora, filename_prefix=f"test/sum-{key_format}", key_format=key_format, dtype="fp32"
        )
        injected = run_node("BespokeInjectLora", model=model, lora_name=name, strength_model=1.0)[0]
        assert torch.equal(tiny.predict(injected), tiny.predict(inject(run_node, model, lora)))


# --- inspection -----------------------------------------------------------------------------------------------------


def test_norm_and_spectrum_match_the_matrices(model, layers):
    lora = NamedLora(tiny.random_lora(layers, 4, 6.0), "lora", {})
    found, remarks = inspect(lora, model)
    assert len(found) == len(layers)
    assert "Beside the weights of the model" in remarks[0]
    parts, weights = layers_of(lora), bare(model)
    for one in found:
        whole = 6.0 / 4 * parts[one.layer][".lora_up.weight"] @ parts[one.layer][".lora_down.weight"]
        base = weights[f"{one.layer}.weight"]
        assert one.relative == pytest.approx(float(whole.norm() / base.norm()), rel=1e-4)
        assert one.spectrum == pytest.approx(torch.linalg.svdvals(whole)[:4].tolist(), rel=1e-3, abs=1e-5)
        squares = torch.linalg.svdvals(whole).double() ** 2
        assert squares[: one.directions].sum() >= 0.9 * squares.sum() > squares[: one.directions - 1].sum()
        assert (one.rank, one.alpha) == (4, 6.0)
    assert [one.row for one in found] == sorted(
        (one.row for one in found), key=lambda row: [*dict.fromkeys(o.row for o in found)].index(row)
    )
    assert (found[0].row, found[-1].row) == ("in.1 (down.0)", "out.11 (up.3)")


def test_the_base_is_compared_bare_while_a_lora_is_merged_into_it(run_node, model, layers):
    lora = NamedLora(tiny.random_lora(layers, 4), "lora", {})
    before, _ = inspect(lora, model)
    patched = inject(run_node, model, tiny.random_lora(layers, 8, size=3.0, seed=5))
    tiny.predict(patched)  # merges the LoRA into the weights in memory
    for other in (patched, model):
        assert [one.base for one in inspect(lora, other)[0]] == pytest.approx([one.base for one in before])
    tiny.predict(model)


def test_dora_and_oft_are_measured_with_the_model(model, layers):
    """DoRA's change by the paper's equation 5, m V / |V| - W with V = W + up down and the norm of each row."""
    (name, (rows, columns)), (other, (height, _)), *_ = layers.items()
    at = f"diffusion_model.{name}"
    lora = NamedLora(
        {
            f"{at}.lora_up.weight": randn(rows, 2),
            f"{at}.lora_down.weight": randn(2, columns),
            f"{at}.dora_scale": 1 + randn(rows, 1).abs(),
            f"diffusion_model.{other}.oft_blocks": 0.1 * randn(4, height // 4, height // 4),
        },
        "mixed",
        {},
    )
    without_model, _ = inspect(lora)
    assert [one.norm for one in without_model] == [None, None]
    assert "norm not known without the model" in inspection_report(lora, without_model, [])
    assert heatmap.picture("mixed", without_model).size[0] > 300
    found, _ = inspect(lora, model)
    base = bare(model)[f"{at}.weight"]
    changed = base + lora[f"{at}.lora_up.weight"] @ lora[f"{at}.lora_down.weight"]
    change = lora[f"{at}.dora_scale"] * changed / changed.norm(dim=1, keepdim=True) - base
    dora = next(one for one in found if one.kind == "DoRA")
    assert dora.norm == pytest.approx(float(change.norm()), rel=1e-3)
    assert dora.spectrum[:3] == pytest.approx(torch.linalg.svdvals(change)[:3].tolist(), rel=1e-3)
    assert {one.kind for one in found if one.norm} == {"DoRA", "OFT"}


def test_report_of_a_file_with_its_metadata_and_workflow(run_node, comfyui, model, layers):
    meta = {
        "ss_steps": "400",
        "ss_learning_rate": "0.0001",
        "modelspec.trigger_phrase": "teal",
        "ss_tag_frequency": json.dumps({"a": {"teal": 3}}),
        "workflow": json.dumps(
            {"nodes": [{"type": "CheckpointLoaderSimple"}, {"type": "BespokeTrainLora"}, {"type": "BespokeTrainLora"}]}
        ),
    }
    path = comfyui / "models" / "loras" / "inspected.safetensors"
    safetensors.torch.save_file(tiny.random_lora(layers, 4), path, meta)
    report, heatmap = run_node("BespokeInspectLora", lora_name="inspected.safetensors", model=model)
    for words in (
        "ss_steps: 400",
        "ss_learning_rate: 0.0001",
        "Trigger words: teal",
        "3 nodes: CheckpointLoaderSimple, BespokeTrainLora x 2",
        "Drop the file on ComfyUI's canvas",
        "rank 4, alpha 2",
        "directions hold 90 % of the energy",
    ):
        assert words in report, words
    for name in layers:
        assert sum(f": {name};" in line for line in report.splitlines()) == 1, name
    assert heatmap.shape[0] == 1
    assert heatmap.shape[-1] == 3
    assert 0.0 <= float(heatmap.min()) < 0.3
    assert float(heatmap.max()) <= 1.0
    wired, _ = run_node("BespokeInspectLora", lora_name="none", lora=tiny.random_lora(layers, 4))
    assert "carries no workflow" in wired
    assert "No model is wired in" in wired


@pytest.mark.parametrize(
    "workflow",
    ["{", "[]", "{}", '{"nodes": 3}', '{"nodes": [3]}', '{"nodes": [{"type": {"a": 1}}]}', "[" * 10000, "null"],
)
def test_a_broken_workflow_is_no_error(layers, workflow):
    lora = NamedLora(tiny.random_lora(layers, 1), "odd", {"workflow": workflow, "x": "\x00\n" * 500})
    report = inspection_report(lora, inspect(lora)[0], [])
    assert "workflow" in report
    assert max(map(len, report.splitlines())) < 4000


def test_the_wrong_base_is_reported_and_not_an_error(run_node, layers):
    sdxl = {
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_up.weight": randn(640, 2),
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_down.weight": randn(2, 2048),
    }
    report, _ = run_node("BespokeInspectLora", lora_name="none", lora=sdxl, model=tiny.patcher())
    assert "does not fit the model that is wired in" in report
    assert "made for SDXL, and this is SD1.5" in report
    with pytest.raises(ValueError, match="Bespoke Inject LoRA: .*made for SDXL, and this is SD1.5"):
        inject(run_node, tiny.patcher(), sdxl)


def test_heatmap_cells(model, layers):
    """Each cell is the root of the summed squares over that of the base, by block and projection."""
    lora = NamedLora(tiny.random_lora(layers, 4), "lora", {})
    found, _ = inspect(lora, model)
    table = heatmap._sizes("lora", found, True)
    mine = [one for one in found if (one.row, one.column) == ("mid", "cross value")]
    assert len(mine) == 1
    assert table.cells["mid", "cross value"] == pytest.approx(mine[0].relative)
    total = math.sqrt(sum(one.norm**2 for one in found) / sum(one.base**2 for one in found))
    assert table.cells["all", "all"] == pytest.approx(total)
    spread = heatmap._spread(found)
    for row in spread.rows:
        assert sum(spread.cells[row, str(i)] for i in range(1, 5)) == pytest.approx(1.0)

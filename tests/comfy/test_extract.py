"""Extract LoRA: what was added to a base comes back, whatever the weights are stored as and the wires carry.

The oracle is arithmetic: base + up @ down, in float64.
"""

import copy
import math
from pathlib import Path

import pytest
import tiny
import torch
from bespoke.nodes.lora.composition.compose import compose
from bespoke.nodes.lora.composition.methods import How
from bespoke.nodes.lora.composition.source import Source
from bespoke.nodes.lora.extraction.extract import extract
from bespoke.nodes.lora.extraction.request import Request
from bespoke.training.errors import InputError
from bespoke.training.layer_names.parts import layers_of

RANK = 4


def with_weights(patcher, change, dtype=None):
    """A patcher of its own over the same model with other weights. change: (name, weight) -> the new weight."""
    import comfy.model_patcher

    config = patcher.model.model_config
    model = copy.deepcopy(patcher.model, {id(config): config})
    for name, parameter in model.named_parameters():
        parameter.data = change(name, parameter.data)
        if dtype is not None:
            parameter.data = parameter.data.to(dtype)
    return comfy.model_patcher.ModelPatcher(model, patcher.load_device, patcher.offload_device)


def known_change(patcher, size=0.03, rank=RANK, prefix="diffusion_model.", only=lambda name: True):
    """{weight's name: a change of this rank, `size` times as large as the weight}."""
    generator, out = torch.Generator().manual_seed(7), {}
    for name, weight in patcher.model.named_parameters():
        if weight.ndim > 1 and name.startswith(prefix) and name.endswith(".weight") and only(name):
            flat = weight.flatten(1)
            some = min(rank, *flat.shape)
            delta = (
                torch.randn(len(flat), some, generator=generator).double()
                @ torch.randn(some, flat.shape[1], generator=generator).double()
            )
            out[name] = (delta * size * float(flat.norm()) / delta.norm()).reshape(weight.shape)
    return out


def tuned_by(patcher, changes, dtype=None):
    return with_weights(
        patcher, lambda name, weight: (weight.double() + changes[name]).float() if name in changes else weight, dtype
    )


def deltas(lora, prefix=""):
    """{weight's name: up @ down * alpha / rank, in float64}."""
    out = {}
    for layer, parts in layers_of(lora).items():
        if ".lora_up.weight" in parts:
            up, down = (parts[f".lora_{side}.weight"].double() for side in ("up", "down"))
            flat = up.flatten(1) @ down.flatten(1) * float(parts.get(".alpha", len(down))) / len(down)
            out[layer.removeprefix(prefix) + ".weight"] = flat.reshape(len(up), -1, *down.shape[2:]).squeeze()
    return out


def relative_error(found, wanted):
    assert found.keys() == wanted.keys()
    lost = sum(float((found[name].reshape(wanted[name].shape) - wanted[name]).square().sum()) for name in wanted)
    return math.sqrt(lost / sum(float(one.square().sum()) for one in wanted.values()))


@pytest.fixture(scope="module")
def base(comfyui):
    return tiny.patcher()


@pytest.fixture(scope="module")
def changes(base):
    return known_change(base)


@pytest.fixture(scope="module")
def tuned(base, changes):
    return tuned_by(base, changes)


@pytest.fixture(scope="module")
def extracted(run_node, base, tuned):
    return run_node("BespokeExtractLora", model=tuned, base=base, rank=RANK)


def test_a_known_lora_comes_back(extracted, changes):
    """Linear layers and convolutions, in float32: relative error at most 1e-4."""
    lora, report, heatmap = extracted
    assert any(change.ndim == 4 and change.shape[-1] == 3 for change in changes.values())
    assert relative_error(deltas(lora), changes) < 1e-4
    assert {parts[".lora_down.weight"].shape[0] for parts in layers_of(lora).values()} == {RANK}
    assert f"rank {RANK}; " in report
    assert heatmap.ndim == 4


def test_a_known_lora_comes_back_from_half_precision(base, changes):
    """Both models' weights rounded to fp16, at the LoRA's rank: at most 2e-2."""
    half = with_weights(base, lambda _, weight: weight, torch.float16)
    lora = extract(tuned_by(base, changes, torch.float16), half, Request(rank=RANK)).lora
    error = relative_error(deltas(lora), changes)
    print(f"relative error from fp16 files {error:.2e}")
    assert error < 2e-2


def loaded_weights(run_node, patcher, name, clip=None):
    import comfy.model_management

    loaded, text = run_node(
        "LoraLoader", model=patcher, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0
    )
    patchers = [loaded] + ([text.patcher] if text is not None else [])
    with torch.inference_mode():
        comfy.model_management.load_models_gpu(patchers)
    return [{name: weight.clone() for name, weight in each.model.named_parameters()} for each in patchers]


def movement_error(weights, tuned, base):
    """|found - tuned| / |tuned - base| over all weights."""
    after, before = (dict(each.model.named_parameters()) for each in (tuned, base))
    lost = sum(float((weights[name].double() - after[name].double()).square().sum()) for name in after)
    moved = sum(float((after[name].double() - before[name].double()).square().sum()) for name in after)
    return math.sqrt(lost / moved)


@pytest.mark.parametrize("key_format", ["kohya", "comfy"])
def test_the_saved_file_through_cores_loader_gives_the_tuned_weights(run_node, base, tuned, extracted, key_format):
    plain = with_weights(base, lambda _, weight: weight)
    _, name = run_node(
        "BespokeSaveLora", lora=extracted[0], filename_prefix="extracted", key_format=key_format, dtype="fp32"
    )
    (weights,) = loaded_weights(run_node, plain, name)
    assert movement_error(weights, tuned, base) < 1e-4


def test_it_knows_what_other_programs_call_its_layers(extracted):
    """diffusers' own name of the first cross-attention of an SD1.5 U-Net, which kohya writes with underscores."""
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    assert f"{layer}.lora_up.weight" in extracted[0]
    assert extracted[0].layer_names[layer] == {
        "kohya": f"lora_unet_{name.replace('.', '_')}",
        "diffusers": f"unet.{name}",
    }


def test_patches_on_the_wire_count_on_both_sides(run_node):
    """Two LoRAs by core's and this pack's loader, on one base: the difference is the second one's, whichever is
    loaded. Core's own extraction patches weights again that its loader has patched already (ComfyUI issue 15907).
    """
    base = tiny.patcher()
    layers = tiny.linear_layers(base)
    first, second = (tiny.random_lora(layers, RANK, float(RANK), seed, size=0.05) for seed in (1, 2))
    (one,) = run_node("LoraModelLoader", model=base, lora=first, strength_model=1.0)[:1]
    (both,) = run_node("BespokeInjectLora", model=one, lora_name="none", lora=second, strength_model=1.0)[:1]
    wanted = {f"{name}": change.double() for name, change in deltas(second).items()}
    for loaded in (None, both, one):
        if loaded is not None:
            tiny.predict(loaded)
        assert relative_error(deltas(extract(both, one, Request(rank=RANK)).lora), wanted) < 1e-4


def test_another_clones_patches_do_not_count(tuned, changes):
    """ComfyUI leaves the patches of the clone that ran last in the weights."""
    base = tiny.patcher()
    other = base.clone()
    name = next(iter(changes))
    other.add_patches({name: ("diff", (torch.ones(changes[name].shape),))})
    tiny.predict(other)
    assert relative_error(deltas(extract(tuned, base, Request(rank=RANK)).lora), changes) < 1e-4


@pytest.fixture(scope="module")
def texts(comfyui):
    """(base CLIP, tuned CLIP, the change): a change far below kohya's `min_diff` of 0.01."""
    clip, tuned = tiny.clip(), tiny.clip()
    only = "encoder.layers."
    change = known_change(clip.patcher, size=1e-3, prefix="clip_l", only=lambda name: only in name)
    for name, weight in tuned.cond_stage_model.named_parameters():
        if name in change:
            weight.data = (weight.data.double() + change[name]).float()
    return clip, tuned, change


def test_a_text_encoder_is_a_part_of_the_lora(run_node, base, tuned, changes, texts):
    """Every change counts: kohya's script drops a text encoder whose greatest change is below 0.01 (sd-scripts issue
    1034)."""
    clip, tuned_clip, change = texts
    assert max(float(one.abs().max()) for one in change.values()) < 0.01
    lora, report, _ = run_node("BespokeExtractLora", model=tuned, base=base, rank=RANK, clip=tuned_clip, base_clip=clip)
    found = deltas(lora)
    own = {name.removeprefix("text_encoders."): one for name, one in found.items() if name.startswith("text_")}
    assert relative_error(own, change) < 1e-3  # float32 rounds a weight by 6e-8, 6e-5 of a change of 1e-3
    assert relative_error({name: one for name, one in found.items() if not name.startswith("text_")}, changes) < 1e-4
    assert "  text: " in report
    _, name = run_node("BespokeSaveLora", lora=lora, filename_prefix="with_text", dtype="fp32")
    _, loaded = loaded_weights(run_node, with_weights(base, lambda _, weight: weight), name, clip)
    assert movement_error(loaded, tuned_clip.patcher, tiny.clip().patcher) < 1e-3


def test_one_text_encoder_alone_is_refused(run_node, base, tuned, texts):
    with pytest.raises(InputError, match="Extract LoRA: clip is wired in and base_clip is not; wire both"):
        run_node("BespokeExtractLora", model=tuned, base=base, clip=texts[0])


def vectors(patcher, size=0.05):
    generator = torch.Generator().manual_seed(3)
    return {
        name: size * torch.randn(weight.shape, generator=generator).double()
        for name, weight in patcher.model.named_parameters()
        if weight.ndim < 2
    }


def test_norms_and_biases_are_named_or_written(run_node, base, changes):
    more = vectors(base)
    tuned = tuned_by(base, changes | more)
    lora, report, _ = run_node("BespokeExtractLora", model=tuned, base=base, rank=RANK)
    share = sum(float(one.square().sum()) for one in more.values()) / sum(
        float(one.square().sum()) for one in (changes | more).values()
    )
    assert f"Norms and biases changed and not in the LoRA: {len(more)}, {share * 100:.3g} %" in report
    assert relative_error(deltas(lora), changes) < 1e-4
    lora, report, _ = run_node("BespokeExtractLora", model=tuned, base=base, rank=RANK, norms_and_biases=True)
    assert f"Norms and biases written as whole differences: {len(more)}" in report
    (loaded,) = run_node("LoraModelLoader", model=with_weights(base, lambda _, w: w), lora=lora, strength_model=1.0)[:1]
    tiny.predict(loaded)
    assert movement_error(dict(loaded.model.named_parameters()), tuned, base) < 1e-4
    only = tuned_by(base, more)
    with pytest.raises(InputError, match="only norms and biases differ.*switch norms_and_biases on"):
        run_node("BespokeExtractLora", model=only, base=base)


def test_energy_keeps_the_share_in_every_layer(base):
    """Against torch's SVD: the least rank of each layer whose singular values hold the share."""
    generator = torch.Generator().manual_seed(5)
    change = {
        name: 0.02 * torch.randn(weight.shape, generator=generator).double()
        for name, weight in base.model.named_parameters()
        if weight.ndim > 1 and "middle_block" in name
    }
    found = extract(tuned_by(base, change), base, Request(energy=0.8))
    for layer, parts in layers_of(found.lora).items():
        squares = torch.linalg.svdvals(change[f"{layer}.weight"].flatten(1)) ** 2
        least = int((squares.cumsum(0) < 0.8 * squares.sum()).sum()) + 1
        assert parts[".lora_down.weight"].shape[0] == least


@pytest.mark.parametrize(("energy", "rank"), [(0.999998, 1), (0.999999, 2), (1.0, 3)])
def test_an_energy_next_to_1_is_kept(energy, rank):
    """By hand: the squared singular values are .9999982, .000001 and .0000008 of all."""
    from bespoke.nodes.lora.composition.ranks import rank_by
    from bespoke.nodes.lora.extraction.decompose import Size, nearest

    values = torch.tensor([0.9999982, 1e-6, 8e-7], dtype=torch.float64).sqrt()
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(40, 3, generator=generator).double())[0] for _ in range(2))
    found = nearest((left * values @ right.t()).float(), Size(1, energy))
    assert found.factors.rank == rank
    assert found.lost <= (1 - energy + 1e-8) * found.total
    assert rank_by(values, energy, "energy") == rank  # Compose LoRAs means the same


def test_a_sum_of_extracted_loras_knows_their_names(run_node, extracted, base):
    """Save LoRA in all three formats of one extraction composed with another: at half strength each, the extraction
    itself, as Inject LoRA applies the files."""
    half = run_node(
        "BespokeComposeLoras", loras={"lora0": extracted[0], "lora1": extracted[0]}, strengths="0.5\n0.5", rank=RANK
    )[0]
    wanted = deltas(extracted[0])
    import folder_paths
    from bespoke.nodes.lora.files import read_lora
    from bespoke.nodes.lora.injection.request import Request as Injected
    from bespoke.nodes.lora.injection.scoped import scoped_lora

    for form in ("kohya", "diffusers", "comfy"):
        name = run_node("BespokeSaveLora", lora=half, filename_prefix=f"half-{form}", key_format=form, dtype="fp32")[0]
        read = read_lora(Path(folder_paths.get_full_path("loras", name)))
        scoped, _ = scoped_lora(base, None, read, Injected())
        assert relative_error(deltas(scoped), wanted) < 1e-5, form


@pytest.mark.parametrize("method", ["sum", "ties", "dare", "balance"])
def test_an_extraction_goes_through_every_method(extracted, method):
    """By definition: of one LoRA alone and all of its numbers kept, each method gives the LoRA back."""
    made = compose([Source(extracted[0])], How(0, method, density=1.0)).lora
    assert relative_error(deltas(made), deltas(extracted[0])) < 1e-5


def test_the_report_names_the_ranks_that_would_keep_more(run_node, base, changes):
    """Summed over the layers by rank, as torch's SVD gives them."""
    tuned = tuned_by(base, changes)
    _, report, _ = run_node("BespokeExtractLora", model=tuned, base=base, rank=1)
    squares = torch.zeros(RANK, dtype=torch.float64)
    for change in changes.values():
        some = torch.linalg.svdvals(change.flatten(1))[:RANK] ** 2
        squares[: len(some)] += some
    ranks = [int((squares.cumsum(0) < share * squares.sum()).sum()) + 1 for share in (0.9, 0.95, 0.99)]
    assert f"The rank that keeps 90%: {ranks[0]}, 95%: {ranks[1]}, 99%: {ranks[2]}" in report
    kept = float(squares[0] / squares.sum())
    assert f"It keeps {kept * 100:.3g} % of these layers' squared change; its relative error is " in report
    assert "  mid: " in report


def test_a_change_larger_than_the_weight_is_told_as_such(run_node):
    """Three times the weight is a change of 200 %, as on the heatmap; a spectrum lists no count that adds nothing."""
    model = tiny.patcher(tiny.SMALLEST)
    tuned = model.clone()
    layer = next(iter(tiny.linear_layers(model)))
    key = f"diffusion_model.{layer}.weight"
    weight = model.model.diffusion_model.get_submodule(layer).weight.detach()
    tuned.add_patches({key: (2.0 * weight,)})
    _, report, _ = run_node("BespokeExtractLora", model=tuned, base=model, rank=64)
    assert "; change 200 %; 1 layer" in report
    spectrum = next(line for line in report.splitlines() if line.startswith("Spectrum"))
    shares = [words.split(": ")[1] for words in spectrum.rstrip(".").split("hold: ")[1].split(", ")]
    assert len(set(shares)) == len(shares)


def test_targets_and_conv_rank_choose_layers(run_node, base, tuned, changes):
    linear = extract(tuned, base, Request(rank=RANK, targets="cross-attention"))
    assert {*deltas(linear.lora)} == {name for name in changes if "attn2" in name}
    assert {each.kind for each in linear.rest} == {"not chosen"}
    no_convolutions = extract(tuned, base, Request(rank=RANK, conv_rank=0)).lora
    assert {*deltas(no_convolutions)} == {name for name, one in changes.items() if math.prod(one.shape[2:]) == 1}
    small = layers_of(extract(tuned, base, Request(rank=RANK, conv_rank=2)).lora)
    assert {parts[".lora_down.weight"].shape[0] for parts in small.values()} == {2, RANK}
    own = extract(tuned, base, Request(RANK, targets="custom", custom_targets="*attn1*, *attn1.to_q : 1"))
    ranks = {layer: parts[".lora_down.weight"].shape[0] for layer, parts in layers_of(own.lora).items()}
    assert {rank for layer, rank in ranks.items() if layer.endswith("to_q")} == {1}
    assert {rank for layer, rank in ranks.items() if not layer.endswith("to_q")} == {RANK}
    with pytest.raises(InputError, match="no layer matches '\\*attn7\\*'"):
        run_node("BespokeExtractLora", model=tuned, base=base, targets="custom", custom_targets="*attn7*")
    with pytest.raises(InputError, match="leave out every weight that changed"):
        extract(
            tuned_by(base, {name: one for name, one in changes.items() if one.ndim == 4 and one.shape[-1] == 3}),
            base,
            Request(conv_rank=0),
        )


def test_models_that_are_no_pair_are_refused(run_node, base, tuned):
    with pytest.raises(InputError, match="none of the .* weights differs.*wire the tuned model into model"):
        run_node("BespokeExtractLora", model=base, base=base.clone())
    with pytest.raises(InputError, match="model is a SDXL .* and base a BaseModel"):
        run_node("BespokeExtractLora", model=tiny.sdxl()[0], base=base)
    inpainting = tiny.patcher({**tiny.SD15, "in_channels": 9})
    with pytest.raises(InputError, match=r"input_blocks\.0\.0\.weight is .*9.* in the tuned model"):
        run_node("BespokeExtractLora", model=inpainting, base=base)
    broken = with_weights(base, lambda name, weight: weight * math.nan if name.endswith("to_k.weight") else weight)
    with pytest.raises(InputError, match="holds NaN or infinity"):
        run_node("BespokeExtractLora", model=broken, base=base)
    with pytest.raises(InputError, match="energy is 1.5"):
        run_node("BespokeExtractLora", model=tuned, base=base, energy=1.5)


def test_what_acts_beside_the_weights_is_refused_by_name(run_node, base, tuned):
    lora = tiny.random_lora(tiny.linear_layers(base))
    beside = run_node("BespokeInjectLora", model=base, lora_name="none", lora=lora, strength_model=1.0, mode="bypass")
    with pytest.raises(InputError, match="model carries a path beside its weights.*mode merge"):
        run_node("BespokeExtractLora", model=beside[0], base=base)
    with pytest.raises(InputError, match="base carries a path beside its weights"):
        run_node("BespokeExtractLora", model=tuned, base=beside[0])
    wrapped = base.clone()
    wrapped.add_weight_wrapper("diffusion_model.input_blocks.0.0.weight", lambda weight: weight)
    with pytest.raises(InputError, match="model carries a function that changes its weights at each call"):
        run_node("BespokeExtractLora", model=wrapped, base=base)
    hooked = base.clone()
    hooked.hook_patches = {"a hook": {"diffusion_model.input_blocks.0.0.weight": [("a patch",)]}}
    with pytest.raises(InputError, match="model carries hooks"):
        run_node("BespokeExtractLora", model=hooked, base=base)
    module = base.clone()
    module.add_object_patch("diffusion_model.out", torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"another module in the place of diffusion_model\.out"):
        run_node("BespokeExtractLora", model=module, base=base)


def test_weights_of_another_type_are_equal_up_to_their_rounding(base, changes):
    """A half precision copy of the base is the base; only the layer that was changed is in the LoRA."""
    name = next(name for name in changes if name.endswith("attn2.to_k.weight"))
    half = tuned_by(base, {name: changes[name]}, torch.float16)
    done = extract(half, base, Request(rank=RANK))
    assert {*deltas(done.lora)} == {name}
    assert done.mixed == {"float16 and float32"}
    with pytest.raises(InputError, match="none of the"):
        extract(with_weights(base, lambda _, weight: weight, torch.float16), base, Request())


def test_fp8_weights_are_read_as_numbers(base, changes):
    """The change between two fp8 models is that of their numbers in float64."""
    one, two = (
        with_weights(each, lambda _, weight: weight.to(torch.float8_e4m3fn) if weight.ndim > 1 else weight)
        for each in (tuned_by(base, {name: 10 * one for name, one in changes.items()}), base)
    )
    own = {name: weight.double() for name, weight in one.model.named_parameters()}
    wanted = {name: own[name] - weight.double() for name, weight in two.model.named_parameters() if weight.ndim > 1}
    lora = extract(one, two, Request(rank=4096)).lora
    assert relative_error(deltas(lora), {name: one for name, one in wanted.items() if float(one.norm())}) < 1e-4


def test_a_block_has_one_name_in_every_overview(run_node, comfyui):
    """A U-Net with one residual block a resolution, such as KOALA's and the small model's: diffusers' names of its
    layers, ComfyUI's own table, are the oracle. Without them two blocks a resolution would be taken."""
    import comfy.utils
    from bespoke.nodes.lora.inspection.compare import compare
    from bespoke.nodes.lora.inspection.inspect import inspect
    from bespoke.nodes.lora.named_lora import NamedLora

    one = {"num_res_blocks": [1, 1], "channel_mult": [1, 1], "transformer_depth": [0, 1]}
    base = tiny.patcher({**tiny.SD15, **one, "transformer_depth_output": [0, 0, 1, 1]})
    done = extract(tuned_by(base, known_change(base)), base, Request(rank=RANK))
    theirs = comfy.utils.unet_to_diffusers(base.model.model_config.unet_config)
    theirs = {ours.removesuffix(".weight"): name for name, ours in theirs.items() if name.endswith(".weight")}
    wanted = {}
    for layer in layers_of(done.lora):
        side, number, *_ = layer.removeprefix("diffusion_model.").split(".")
        if side in ("input_blocks", "output_blocks") and number != "0":
            fine = f"{'in' if side == 'input_blocks' else 'out'}.{number}"
            way, _, level, *_ = theirs[layer.removeprefix("diffusion_model.")].replace("_", ".", 1).split(".")
            wanted[layer] = f"{fine} ({way}.{level})"
    assert {"in.1 (down.0)", "in.3 (down.1)", "out.1 (up.0)", "out.3 (up.1)"} <= {*wanted.values()}

    def rows(found):
        return {each.name: each.row for each in found if each.name in wanted}

    assert rows(done.layers) == wanted
    assert rows(inspect(done.lora)[0]) == wanted
    kohyas = {done.lora.layer_names[layer]["kohya"]: parts for layer, parts in layers_of(done.lora).items()}
    kohyas = NamedLora({name + part: t for name, parts in kohyas.items() for part, t in parts.items()}, "kohya", {})
    assert rows(inspect(kohyas, base)[0]) == wanted
    compared = compare(kohyas, done.lora)
    assert compared.alone == (0, 0)
    assert rows(compared.shared) == wanted
    overlap = compose([Source(done.lora), Source(kohyas)]).overlap
    assert {*wanted.values()} <= {*overlap.rows}
    assert float(overlap.cosines()[0, 1]) == pytest.approx(1.0)


def test_it_stops_when_it_is_interrupted(base, tuned, monkeypatch):
    import comfy.model_management

    calls = []

    def interrupt():
        calls.append(None)
        if len(calls) == 3:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        extract(tuned, base, Request())
    assert len(calls) == 3

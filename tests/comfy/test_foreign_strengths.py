"""LoRA files of PEFT and LyCORIS change each layer as PEFT and LyCORIS themselves do (their own code is the oracle).

The error of a layer is |y - y'| / |y' - y0|: y our output, y' the other program's, y0 that of the bare layer, for one
input, all in float32.
"""

import json
import math
from functools import cache, partial

import foreign
import pytest
import safetensors.torch
import tiny
import torch

MOST_ERROR = 1e-4
MODES = ("merge", "bypass")


@pytest.fixture(scope="module")
def folder(comfyui):
    path = comfyui / "models" / "loras" / "strengths"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def model(comfyui):
    return tiny.patcher()


@pytest.fixture(scope="module")
def bare_unet(comfyui):
    """The U-Net of `model` with the same weights, which nothing is ever merged into: files are made for its layers."""
    return tiny.patcher().model.diffusion_model


@pytest.fixture(scope="module")
def errors(run_node, model, folder):
    """errors(made, **inputs) -> (largest relative error over the file's layers, report) of Bespoke Inject LoRA.

    path: another file than the one made. base: the model on the wire. expected: a function of the bare outputs that
    gives those to compare with. The rest goes to the node.
    """
    import comfy.model_management

    loras = folder.parent

    unet = model.model.diffusion_model

    def outputs(patched, layers):
        comfy.model_management.load_models_gpu([patched])
        with torch.inference_mode():
            return {n: foreign.layer_of(unet, n)(foreign.inputs(foreign.layer_of(unet, n))).clone() for n in layers}

    @cache
    def bare(layers):
        return outputs(model, layers)

    def measure(made, path=None, base=model, expected=None, **inputs):
        name = (made.path if path is None else path).relative_to(loras).as_posix()
        patched, _, report, *_ = run_node(
            "BespokeInjectLora", model=base, lora_name=name, **({"strength_model": 1.0} | inputs)
        )
        layers = tuple(made.outputs)
        ours, before = outputs(patched, layers), bare(layers)
        theirs = made.outputs if expected is None else expected(before)
        worst = 0.0
        for layer in layers:
            moved = float((theirs[layer] - before[layer]).norm())
            assert moved > 1e-3 * float(before[layer].norm()), f"{layer} does not move"
            worst = max(worst, float((ours[layer] - theirs[layer]).norm()) / moved)
        return worst, report

    return measure


LINEAR, CONVOLUTIONS = foreign.LINEAR, foreign.CONVOLUTIONS
PEFT = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True, "r": 16},
    "alpha pattern": {"alpha_pattern": {"to_k": 7, r"transformer_blocks\.\d+\.ff\.net\.0\.proj": 5.0}},
    "rank pattern": {"rank_pattern": {"to_out.0": 2, "op": 6}},
    "rsLoRA, both patterns": {
        "use_rslora": True,
        "rank_pattern": {"to_out.0": 2, r"^input_blocks\.\d\.0\.op": 9},
        "alpha_pattern": {"0": 5, "attn2.to_k": 11, "(proj_in|op)": 1},
    },
    "bias": {"lora_bias": True},
    "bias, rsLoRA": {"lora_bias": True, "use_rslora": True, "r": 8},
    "bias = all": {"bias": "all"},
    "LoHa": {"kind": "LoHa", "alpha_pattern": {"to_k": 7}},
    "LoKr": {"kind": "LoKr", "rank_pattern": {"to_k": 2}},
    "LoKr, both": {"kind": "LoKr", "decompose_both": True, "r": 2},
    "DoRA": {"use_dora": True},
    "DoRA, rsLoRA": {"use_dora": True, "use_rslora": True},
}
LYCORIS = {
    "LoCon": {"algo": "lora"},
    "LoCon, Tucker": {"algo": "lora", "use_tucker": True},
    "LoCon, rank-stabilised": {"algo": "lora", "rs_lora": True},
    "DoRA, output": {"algo": "lora", "weight_decompose": True},
    "DoRA, input": {"algo": "lora", "weight_decompose": True, "wd_on_out": False},
    "LoHa": {"algo": "loha"},
    "LoHa, Tucker": {"algo": "loha", "use_tucker": True},
    "LoHa, DoRA": {"algo": "loha", "weight_decompose": True},
    "LoKr": {"algo": "lokr", "factor": 4, "lora_dim": 2},
    "LoKr, whole": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "LoKr, both, Tucker": {"algo": "lokr", "factor": 4, "lora_dim": 1, "decompose_both": True, "use_tucker": True},
    "LoKr, DoRA": {"algo": "lokr", "factor": 4, "lora_dim": 2, "weight_decompose": True},
    "OFT": {"algo": "diag-oft"},
    "OFT, constrained": {"algo": "diag-oft", "constraint": 0.01},
    "OFT, rescaled": {"algo": "diag-oft", "rescaled": True},
    "OFT, constrained, rescaled": {"algo": "diag-oft", "constraint": 0.01, "rescaled": True},
    "BOFT": {"algo": "boft"},
    "BOFT, constrained, rescaled": {"algo": "boft", "constraint": 0.01, "rescaled": True},
    "GLoRA": {"algo": "glora", "size": 0.3},
    "full": {"algo": "full"},
    "norm": {"algo": "norms", "layers": foreign.NORMS},
}


@pytest.fixture(scope="module")
def make(bare_unet, folder):
    """make(program, kind, layers) -> `foreign.Foreign`, made once."""

    @cache
    def one(program, kind, layers):
        name = f"{program}-{kind}-{len(layers)}-{layers[0].rsplit('.', 1)[-1]}".replace(" ", "_")
        if program == "PEFT":
            return foreign.by_peft(bare_unet, folder / name, layers, **PEFT[kind])
        return foreign.by_lycoris(bare_unet, folder / f"{name}.safetensors", **({"layers": layers} | LYCORIS[kind]))

    return one


@pytest.mark.slow
def test_every_kind_of_peft_and_lycoris(errors, make):
    """All kinds over linear layers and convolutions, merged and in bypass. Prints the table of errors (pytest -s)."""
    rows, worst = [], 0.0
    kinds = [("PEFT", kind) for kind in PEFT] + [("LyCORIS", kind) for kind in LYCORIS]
    for program, kind in kinds:
        found = []
        for layers in (LINEAR, CONVOLUTIONS):
            if kind == "norm" and layers is CONVOLUTIONS:
                found += found  # its file has both norms
                continue
            made = make(program, kind, layers)
            found += [errors(made, mode=mode)[0] for mode in MODES]
        worst = max(worst, *found)
        rows.append(f"{program:8} {kind:28} " + " ".join(f"{error:9.1e}" for error in found))
    print("\n" + f"{'':38}{'linear':^20}{'convolution':^20}\n{'':38}" + f"{'merge':>9} {'bypass':>9} " * 2)
    print("\n".join(rows))
    assert worst <= MOST_ERROR


@pytest.mark.parametrize(("component", "flat"), [("", False), ("transformer.", False), ("unet.", True), ("", True)])
def test_settings_in_the_header(errors, make, folder, component, flat):
    """As JSON and as entries of their own, with and without the component before layers and settings."""
    made = make("PEFT", "rsLoRA, both patterns", LINEAR)
    path = foreign.under_header(made.path, folder / f"header-{component}{flat}.safetensors", component, flat)
    assert errors(made, path)[0] <= MOST_ERROR


def test_peft_settings_of_another_component_do_not_count(make, folder):
    """alpha of the text encoder is not the model's; a layer's own alpha comes before any setting."""
    from bespoke.nodes.lora.files import in_comfy_names

    tensors = {
        "transformer.a.lora_A.weight": torch.ones(4, 8),
        "transformer.a.lora_B.weight": torch.ones(8, 4),
        "transformer.b.lora_A.weight": torch.ones(4, 8),
        "transformer.b.lora_B.weight": torch.ones(8, 4),
        "transformer.b.alpha": torch.tensor(3.0),
    }
    lora = in_comfy_names(tensors, "file", {"text_encoder.lora_alpha": "7", "text_encoder.r": "4"})
    assert {key: float(lora[key]) for key in lora if key.endswith("alpha")} == {"transformer.b.alpha": 3.0}
    settings = {"lora_alpha": "8", "use_rslora": "True", "text_encoder.lora_alpha": "7"}
    lora = in_comfy_names(tensors, "file", settings)
    # alpha / rank = 8 / sqrt(4)
    assert {key: float(lora[key]) for key in lora if key.endswith("alpha")} == {
        "transformer.a.alpha": 16.0,
        "transformer.b.alpha": 3.0,
    }


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(a+)+b(?=c)", "save the LoRA again with the modules' plain names"),
        ("to_k)", r"has 'to_k\)', which cannot be read as a pattern"),
        ("(" * 500 + "a" + ")" * 500, "nested more than 50 deep"),
        ("(a{100}){100}", "larger than 2000 states"),
    ],
)
def test_patterns_that_are_refused_name_the_file(pattern, words):
    from bespoke.nodes.lora.files import in_comfy_names

    tensors = {"x.lora_A.weight": torch.ones(2, 3), "x.lora_B.weight": torch.ones(3, 2)}
    meta = {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "alpha_pattern": {pattern: 4}})}
    with pytest.raises(ValueError, match=rf"^theirs\.safetensors: .*{words}"):
        in_comfy_names(tensors, "theirs.safetensors", meta)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_file_for_another_base_is_refused(errors, make, bare_unet, folder, start):
    """PEFT takes the first factors out of the base's weights: on the base itself the file is 0.6 to 0.9 off PEFT's
    output. What PEFT writes with `path_initial_model_for_weight_conversion` is for the base as it was.
    """
    made = foreign.by_peft(bare_unet, folder / start, LINEAR, init_lora_weights=start)
    with pytest.raises(ValueError, match=f"PEFT's init_lora_weights '{start}'.*path_initial_model_for_weight"):
        errors(made)
    under_header = foreign.under_header(made.path, folder / f"{start}.safetensors", "unet.", True)
    with pytest.raises(ValueError, match="which changes the base's weights too"):
        errors(made, under_header)
    converted = foreign.by_peft(bare_unet, folder / f"{start}-converted", LINEAR, convert=True, init_lora_weights=start)
    assert errors(converted)[0] <= MOST_ERROR


def test_a_pattern_that_is_no_json_is_refused():
    """Python's own text of a dict, `{'to_k': 4}`, was passed over: to_k had the alpha of the others."""
    from bespoke.nodes.lora.files import in_comfy_names

    tensors = {"x.to_k.lora_A.weight": torch.ones(2, 3), "x.to_k.lora_B.weight": torch.ones(3, 2)}
    with pytest.raises(ValueError, match=r"theirs\.safetensors: alpha_pattern in its header is no JSON"):
        in_comfy_names(tensors, "theirs.safetensors", {"lora_alpha": "8", "alpha_pattern": "{'to_k': 4}"})
    for empty in ("", "None", "null", "{}"):
        lora = in_comfy_names(tensors, "theirs.safetensors", {"lora_alpha": "8", "alpha_pattern": empty})
        assert float(lora["x.to_k.alpha"]) == 8


def test_a_bias_is_no_weight_whatever_the_order_of_the_file(errors, make, bare_unet, folder):
    """`lora_B.bias` before and after `lora_B.weight`; a layer without a bias, in both modes and in a range of steps."""
    made = make("PEFT", "bias", LINEAR)
    back = foreign.by_peft(bare_unet, folder / "reversed", LINEAR, order=-1, lora_bias=True)
    keys = [list(safetensors.torch.load_file(one.path)) for one in (made, back)]
    assert any(key.endswith("lora_B.bias") for key in keys[0])
    for mode in MODES:
        error, report = errors(back, mode=mode)
        assert error <= MOST_ERROR
        assert "1 layer has no bias of its own" in report
    half = partial(halfway, full=made.outputs)
    assert errors(made, strength_model=0.5, expected=half)[0] <= MOST_ERROR


def halfway(bare, full):
    """Outputs at half of the change: each layer is linear in its weight and bias."""
    return {layer: bare[layer] + 0.5 * (full[layer] - bare[layer]) for layer in full}


@pytest.mark.parametrize("mode", MODES)
def test_half_the_strength(errors, make, bare_unet, folder, mode):
    """DoRA: half of the change, so that 0 is the base. OFT and BOFT: as LyCORIS' modules at multiplier 0.5."""
    for kind in (("PEFT", "DoRA"), ("LyCORIS", "DoRA, input"), ("LyCORIS", "GLoRA"), ("LyCORIS", "OFT")):
        made = make(*kind, LINEAR)
        error, _ = errors(
            made, mode=mode, strength_model=0.5, expected=lambda bare, made=made: halfway(bare, made.outputs)
        )
        assert error <= MOST_ERROR, kind
    for algo in ("diag-oft", "boft"):
        path = folder / f"half-{algo}-{mode}.safetensors"
        made = foreign.by_lycoris(bare_unet, path, algo, LINEAR, multiplier=0.5, constraint=0.01)
        assert errors(made, mode=mode, strength_model=0.5)[0] <= MOST_ERROR, algo


@pytest.mark.parametrize("modes", [("merge", "merge", "merge"), ("bypass", "bypass", "bypass")])
def test_several_loras_on_one_layer_add_up(errors, make, run_node, model, folder, modes):
    """Each changes the base's weight by what it changes alone, in any order: PEFT's DoRA, LyCORIS' OFT and a LoRA."""
    made = [make("LyCORIS", "LoCon", LINEAR), make("PEFT", "DoRA", LINEAR), make("LyCORIS", "OFT, rescaled", LINEAR)]

    def expected(bare):
        return {n: bare[n] + sum(one.outputs[n] - bare[n] for one in made) for n in bare}

    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        at = model
        for i, mode in zip(order[:-1], modes, strict=False):
            name = made[i].path.relative_to(folder.parent).as_posix()
            at = run_node("BespokeInjectLora", model=at, lora_name=name, strength_model=1.0, mode=mode)[0]
        error, _ = errors(made[order[-1]], base=at, mode=modes[-1], expected=expected)
        assert error <= MOST_ERROR, order


def test_a_merged_model_is_the_base_of_a_dora(make, run_node, folder):
    """After core's ModelMergeSimple, DoRA's W is the merged weight: m V / |V|, V = (W1 + W2) / 2 + dW."""
    one, two = tiny.patcher(), tiny.patcher(seed=4)
    merged = run_node("ModelMergeSimple", model1=one, model2=two, ratio=0.5)[0]
    made = make("PEFT", "DoRA", LINEAR)
    name = made.path.relative_to(folder.parent).as_posix()
    out = run_node("BespokeInjectLora", model=merged, lora_name=name, strength_model=1.0)[0]
    import comfy.model_management

    layer = foreign.layer_of(one.model.diffusion_model, LINEAR[0])
    other = foreign.layer_of(two.model.diffusion_model, LINEAR[0])
    base = (layer.weight.clone() + other.weight) / 2
    comfy.model_management.load_models_gpu([out])
    tensors = safetensors.torch.load_file(made.path)
    parts = {key.split(LINEAR[0] + ".")[1]: tensor for key, tensor in tensors.items() if LINEAR[0] in key}
    changed = base + 3 / 4 * parts["lora_B.weight"] @ parts["lora_A.weight"]
    right = parts["lora_magnitude_vector"][:, None] * changed / changed.norm(dim=1, keepdim=True)
    assert float((layer.weight - right).norm() / (right - base).norm()) <= MOST_ERROR


def test_kohyas_rule(errors, bare_unet, folder):
    """kohya's scale is alpha / rank, and 1 without an alpha (sd-scripts' `lora.py`)."""
    generator = torch.Generator().manual_seed(2)
    tensors, outputs = {}, {}
    for name, alpha in zip(LINEAR, (1.0, 6.0, None), strict=True):
        layer = foreign.plain(foreign.layer_of(bare_unet, name))
        out, inner = layer.weight.shape
        up, down = (0.2 * torch.randn(shape, generator=generator) for shape in ((out, 4), (4, inner)))
        kohya = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{kohya}.lora_up.weight": up, f"{kohya}.lora_down.weight": down}
        if alpha is not None:
            tensors[f"{kohya}.alpha"] = torch.tensor(alpha)
        layer.weight += (1.0 if alpha is None else alpha / 4) * up @ down
        outputs[name] = layer(foreign.inputs(layer))
    safetensors.torch.save_file(tensors, folder / "kohya.safetensors")
    made = foreign.Foreign(folder / "kohya.safetensors", outputs)
    assert max(errors(made, mode=mode)[0] for mode in MODES) <= MOST_ERROR


@pytest.mark.parametrize("by_musubi", [True, False])
def test_the_scale_of_a_whole_lokr_is_that_of_its_program(errors, bare_unet, folder, by_musubi):
    """By hand. musubi-tuner's scale is alpha / rank, and alpha over the longer side of a whole W2
    (`networks/lokr.py`, `LoKrModule.get_weight`; its files have a tensor `lokr_factor`). For sd-scripts' LoKr and
    LyCORIS' a whole W2 has the scale 1, whatever alpha is."""
    generator = torch.Generator().manual_seed(2)
    tensors, outputs = {"lokr_factor": torch.tensor(4)} if by_musubi else {}, {}
    for name, whole in zip(LINEAR, (True, False, True), strict=True):
        layer = foreign.plain(foreign.layer_of(bare_unet, name))
        out, inner = layer.weight.shape
        w1 = torch.randn(4, 4, generator=generator)
        a, b = torch.randn(out // 4, 2, generator=generator), torch.randn(2, inner // 4, generator=generator)
        kohya = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{kohya}.lokr_w1": w1, f"{kohya}.alpha": torch.tensor(3.0)}
        tensors |= {f"{kohya}.lokr_w2": a @ b} if whole else {f"{kohya}.lokr_w2_a": a, f"{kohya}.lokr_w2_b": b}
        of_whole = 3 / max(out // 4, inner // 4) if by_musubi else 1.0
        layer.weight += (of_whole if whole else 3 / 2) * torch.kron(w1, a @ b)
        outputs[name] = layer(foreign.inputs(layer))
    path = folder / f"musubi-{by_musubi}.safetensors"
    safetensors.torch.save_file(tensors, path)
    for mode in MODES:
        error, report = errors(foreign.Foreign(path, outputs), mode=mode)
        assert error <= MOST_ERROR
        assert "matched nothing" not in report


def test_fp8_weights(make, folder, run_node):
    """DoRA and OFT beside fp8 weights act on the numbers that the weights stand for; merged, up to their rounding."""
    import comfy.model_management

    model = tiny.patcher()
    unet = model.model.diffusion_model
    model.model.manual_cast_dtype = torch.float32
    for name in LINEAR:
        layer = foreign.layer_of(unet, name)
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
        layer.comfy_cast_weights = True
    stored = {name: foreign.layer_of(unet, name).weight.float() for name in LINEAR}
    made = make("PEFT", "DoRA", LINEAR)
    name = made.path.relative_to(folder.parent).as_posix()
    tensors = safetensors.torch.load_file(made.path)
    for mode in MODES:
        out = run_node("BespokeInjectLora", model=model, lora_name=name, strength_model=1.0, mode=mode)[0]
        comfy.model_management.load_models_gpu([out])
        for layer_name in LINEAR:
            at = f"base_model.model.{layer_name}."
            layer = foreign.layer_of(unet, layer_name)
            changed = stored[layer_name] + 3 / 4 * tensors[f"{at}lora_B.weight"] @ tensors[f"{at}lora_A.weight"]
            right = tensors[f"{at}lora_magnitude_vector"][:, None] * changed / changed.norm(dim=1, keepdim=True)
            x = foreign.inputs(layer)
            with torch.inference_mode():
                moved = layer(x) - torch.nn.functional.linear(x, right, layer.bias)
            scale = torch.nn.functional.linear(x, right - stored[layer_name]).norm()
            if mode == "merge":  # a step of e4m3 is an eighth of the number, and the rounding is stochastic
                scale = torch.nn.functional.linear(x, right).norm() / 8 / MOST_ERROR
            assert float(moved.norm() / scale) <= MOST_ERROR, (mode, layer_name)


def test_a_job_carries_the_adapters(make, run_node, model, folder):
    """Exported and applied again, DoRA and OFT give the same weights; the sum of two on one weight too."""
    from bespoke.nodes.jobs.wire import apply_changes, export_changes

    at = model
    for kind in (("PEFT", "DoRA"), ("LyCORIS", "OFT, rescaled")):
        name = make(*kind, LINEAR).path.relative_to(folder.parent).as_posix()
        at = run_node("BespokeInjectLora", model=at, lora_name=name, strength_model=0.7)[0]
    changes, tensors = export_changes(at, "model")
    again = apply_changes(model, json.loads(json.dumps(changes)), tensors, "model")
    assert torch.equal(tiny.predict(again), tiny.predict(at))
    assert not torch.equal(tiny.predict(again), tiny.predict(model))


def test_training_goes_on_from_rslora_at_its_strength(make, model):
    """alpha / rank of the start is PEFT's alpha / sqrt(rank): 3 / 4 at rank 16. DoRA cannot be gone on from."""
    from bespoke.nodes.lora.files import read_lora
    from bespoke.nodes.lora.match import starting_parts

    start = starting_parts(read_lora(make("PEFT", "rsLoRA", LINEAR).path), model, None)
    scales = {float(start[key]) / 16 for key in start if key.endswith("alpha")}
    assert len(scales) == 1
    assert math.isclose(scales.pop(), 3 / 4, rel_tol=1e-6)
    with pytest.raises(ValueError, match="no plain one of two factors"):
        starting_parts(read_lora(make("PEFT", "DoRA", LINEAR).path), model, None)


def test_the_report_says_where_core_differs(errors, make):
    assert "ComfyUI's own LoRA nodes" not in errors(make("LyCORIS", "OFT", LINEAR))[1]
    for kind in (("PEFT", "DoRA"), ("LyCORIS", "OFT, rescaled"), ("LyCORIS", "OFT, constrained")):
        assert "ComfyUI's own LoRA nodes" in errors(make(*kind, LINEAR))[1], kind


@pytest.mark.parametrize("mode", MODES)
def test_the_bias_of_a_part_of_a_fused_layer(run_node, flux, mode):
    """diffusers' to_k is the middle third of Flux' qkv: its output gets alpha / rank * bias = 3 / 2 * bias there."""
    import comfy.model_management
    from bespoke.nodes.lora.files import in_comfy_names

    model = flux[0]
    layer = foreign.layer_of(model.model.diffusion_model, "double_blocks.0.img_attn.qkv")
    width = layer.out_features // 3
    at = "transformer.transformer_blocks.0.attn.to_k.lora_"
    bias = torch.linspace(1, 2, width)
    tensors = {
        f"{at}B.bias": bias,
        f"{at}A.weight": torch.zeros(2, layer.in_features),
        f"{at}B.weight": torch.ones(width, 2),
    }
    x = torch.randn(2, 5, layer.in_features)
    outputs = []
    for lora in (None, in_comfy_names(tensors, "file", {"transformer.lora_alpha": "3"})):
        out = (
            model
            if lora is None
            else run_node("BespokeInjectLora", model=model, lora=lora, lora_name="none", strength_model=1.0, mode=mode)[
                0
            ]
        )
        comfy.model_management.load_models_gpu([out])
        with torch.inference_mode():
            outputs.append(layer(x).clone())
    change = torch.cat((torch.zeros(width), 1.5 * bias, torch.zeros(width)))
    assert torch.allclose(outputs[1] - outputs[0], change.expand_as(outputs[0]), atol=1e-5)

"""What a wire carries: the table knows every attribute of this ComfyUI, and each is read by its content or refused."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap

import comfy.model_patcher
import comfy.sd
import nodes
import pytest
import tiny
import torch
import wire_nodes
from bespoke.nodes.bridge import identity
from bespoke.nodes.bridge.dataset import cache
from bespoke.nodes.bridge.dataset.conditioning import encode_prompts
from bespoke.nodes.bridge.wire import weights
from bespoke.nodes.bridge.wire.origin import Unreadable
from bespoke.nodes.bridge.wire.table import CLIP, PATCHER, VAE, Role
from bespoke.nodes.bridge.wire.values import Reader
from bespoke.nodes.jobs.source import FOLDERS, Source
from bespoke.nodes.jobs.wire import _decode, check_exportable, export_changes
from bespoke.training.errors import InputError
from helpers import sprite_set
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def small(comfyui):
    """(model, clip, vae) with a single level."""
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def assigned(kind: type) -> set[str]:
    """The attributes that a class assigns to itself, from its source."""
    targets = []
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
        if isinstance(node, ast.Assign):
            targets += [each for t in node.targets for each in (t.elts if isinstance(t, ast.Tuple) else [t])]
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            targets.append(node.target)
    return {
        each.attr
        for each in targets
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "self"
    }


@pytest.mark.parametrize(
    ("kinds", "table"),
    [
        ((comfy.model_patcher.ModelPatcher, comfy.model_patcher.ModelPatcherDynamic), PATCHER),
        ((comfy.sd.CLIP,), CLIP),
        ((comfy.sd.VAE,), VAE),
    ],
)
def test_every_attribute_of_the_host_has_a_row(kinds, table):
    """The oracle is the source of the ComfyUI that runs the test."""
    found = set().union(*map(assigned, kinds))
    assert len(found) > 5
    assert found - set(table) == set(), "add a row to nodes/bridge/wire/table.py that says how it counts"


def test_an_attribute_without_a_row_is_never_passed_over(small):
    model = small[0].clone()
    model.something_new = {"strength": 0.5}
    reading = identity.of_patcher(model)
    assert reading.unread == ("the MODEL carries something_new, which this version of Bespoke does not know",)
    assert reading != identity.of_patcher(model)
    with pytest.raises(InputError, match="something_new, which this version of Bespoke does not know"):
        export_changes(model, "model")


@pytest.mark.parametrize("table", [PATCHER, CLIP], ids=["patcher", "clip"])
def test_job_export_refuses_whatever_it_does_not_carry(small, table):
    """Every row of the table that nodes set and that no job has, among them those that were left out silently."""
    rows = {name: row for name, row in table.items() if row.role is Role.CHANGE and not row.exported}
    assert {"forced_hooks"} <= set(rows) or {"use_clip_schedule"} <= set(rows)
    for name, row in rows.items():
        thing = small[0].clone() if table is PATCHER else small[1].clone()
        check_exportable(thing, table, "model")
        setattr(thing, name, {"key": {"other": [1]}})
        with pytest.raises(InputError, match=re.escape(f"carries {row.words}, which cannot go into a job")):
            check_exportable(thing, table, "model")


def test_job_export_names_what_only_a_sampler_reads(small):
    model = small[0].clone()
    model.set_model_sampler_cfg_function(lambda args: args["cond"])
    assert export_changes(model, "model")[0]["left_out"] == ["sampler_cfg_function"]
    with pytest.raises(InputError, match="sampler_cfg_function for its sampler"):
        export_changes(model, "model", for_samples=True)


def foreign(strength):
    """A model function wrapper of another pack, as this test's is."""
    return lambda apply_model, args: apply_model(args["input"], args["timestep"], **args["c"]) * strength


def test_a_foreign_function_is_equal_to_nothing_and_is_not_cached(small):
    model, clip = small[0].clone(), small[1].clone()
    model.set_model_unet_function_wrapper(foreign(0.5))
    reading = identity.of_patcher(model)
    (reason,) = reading.unread
    assert reason.startswith("the MODEL carries attention, block or sampler patches (the function foreign.<locals>")
    assert reading.text != identity.of_patcher(model).text
    clip.patcher.add_wrapper("apply_model", foreign(0.5))
    assert cache.key_of(identity.of_clip(clip), "a") is None
    entries = len(cache.prompt_cache._entries)
    encode_prompts(clip, ["a foreign prompt"])
    assert len(cache.prompt_cache._entries) == entries
    made = []
    for _ in range(2):
        cache.prompt_cache.get(None, lambda: made.append(1))
    assert made == [1, 1]


def request(models, **more):
    model, clip, vae = models
    return (
        dict(
            model=model,
            clip=clip,
            vae=vae,
            images=sprite_set(3, 2, side=32, colour="red"),
            targets="cross-attention",
            rank=1,
            alpha=1.0,
            learning_rate=1e-2,
            steps=1,
            batch_size=1,
            seed=3,
            precision="fp32",
            validation=0,
        )
        | more
    )


def test_a_run_with_a_foreign_function_is_never_resumed_and_says_so(run_node, runs, small):
    model = small[0].clone()
    model.add_wrapper("apply_model", lambda executor, *args, **kwargs: executor(*args, **kwargs))
    results = [run_node("BespokeTrainLora", **request(small, model=model)) for _ in range(2)]
    assert results[0][3].id != results[1][3].id
    for result in results:
        assert "The MODEL carries a wrapper of another node (the function " in result[4]
        assert "which cannot be compared; this run cannot be resumed." in result[4]
    plain = run_node("BespokeTrainLora", **request(small))
    assert "cannot be resumed" not in plain[4]


def test_a_hypernetwork_at_another_strength_is_another_run(run_node, comfyui, runs, small):
    """The issue's case: core's HypernetworkLoader at 1.0 and 0.3, then at 1.0 again."""
    wire_nodes.use(False)
    wire_nodes.write_files(comfyui)
    ids, losses = [], []
    for strength in (1.0, 0.3, 1.0):
        (model,) = run_node("HypernetworkLoader", model=small[0], hypernetwork_name="wire-1.pt", strength=strength)
        _, _, loss, run, *_ = run_node("BespokeTrainLora", **request(small, model=model))
        ids.append(run.id)
        losses.append(loss["loss"])
    assert ids[0] == ids[2] != ids[1]
    assert losses[0] == losses[2] != losses[1]
    assert len(list(runs.iterdir())) == 2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["hypernetwork", "LoRA in bypass"])
def test_what_a_node_made_in_inference_mode_lets_gradients_through(run_node, comfyui, small, kind, checkpointing):
    """The same thing made outside of inference mode, where autograd can save its tensors, trains to the same bits."""
    wire_nodes.use(False)
    wire_nodes.write_files(comfyui)
    if kind == "hypernetwork":
        name, inputs = "HypernetworkLoader", {"hypernetwork_name": "wire-1.pt", "strength": 1.0}
    else:
        lora = tiny.random_lora(tiny.linear_layers(small[0]), 4)
        save_file(
            {key: tensor.float() for key, tensor in lora.items()}, comfyui / "models" / "loras" / "beside.safetensors"
        )
        name, inputs = "LoraLoaderBypassModelOnly", {"lora_name": "beside.safetensors", "strength_model": 1.0}
    (inside,) = run_node(name, model=small[0], **inputs)
    with torch.inference_mode(False):
        node = nodes.NODE_CLASS_MAPPINGS[name]
        call = node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)
        outside = call(model=small[0], **inputs)
        (outside,) = outside if isinstance(outside, tuple) else outside.args
    loras = [
        run_node(
            "BespokeTrainLora",
            **request(small, model=model, resume=False, gradient_checkpointing=checkpointing, steps=2),
        )[1]
        for model in (inside, outside, small[0])
    ]
    assert all(torch.equal(loras[0][key], loras[1][key]) for key in loras[0])
    assert not all(torch.equal(loras[0][key], loras[2][key]) for key in loras[0])


def test_tokenizer_options_count_for_the_prompt_cache_and_the_run(run_node, flux):
    """min_length 300 on Flux: 300 tokens of T5 where the default has 256."""
    clip = flux[1]
    (longer,) = run_node("T5TokenizerOptions", clip=clip, min_padding=0, min_length=300)
    before = encode_prompts(clip, ["a red circle"])["a red circle"][0]
    after = encode_prompts(longer, ["a red circle"])["a red circle"][0]
    assert (tuple(before.shape), tuple(after.shape)) == ((1, 256, 64), (1, 300, 64))
    assert identity.of_clip(longer) != identity.of_clip(clip)
    models = (identity.of_models(flux[0], one, flux[2]) for one in (clip, longer))
    assert len(set(models)) == 2


def test_every_bit_of_the_base_counts_and_is_read_once(comfyui, monkeypatch):
    """One value changes that no sample has: the 65th of a tensor that is not a sixteenth one."""
    first, second = tiny.patcher(tiny.SMALLEST), tiny.patcher(tiny.SMALLEST)
    name = list(dict(weights.base_tensors(second)))[1]
    with torch.inference_mode():
        weight = dict(second.model.named_parameters())[name]
        assert weight.numel() > 65
        weight.view(-1)[65] += 1
    sample = [weights.sample_of_weights(weights.base_tensors(one)) for one in (first, second)]
    assert sample[0] == sample[1]
    calls = []
    monkeypatch.setattr(weights, "checksum", lambda patcher, plain=weights.checksum: calls.append(1) or plain(patcher))
    readings = [identity.of_patcher(one) for one in (first, second, first.clone(), second.clone())]
    assert readings[0] != readings[1]
    assert readings[:2] == readings[2:]
    assert calls == [1, 1]


def numbers(scale, *, offset=0.0):
    def inner(x, bias=1.0):
        return x * scale + offset + bias

    return inner


class Settings:
    def __init__(self, strength):
        self.strength = strength


def test_values_are_read_by_content(monkeypatch):
    """Read as if this test were a part of ComfyUI. Each list has values that all differ, and each is equal to its
    copy."""
    from bespoke.nodes.bridge.wire import origin, values

    monkeypatch.setattr(values, "function_origin", lambda function: function.__qualname__)
    monkeypatch.setattr(values, "class_origin", lambda kind: kind.__qualname__)
    long = torch.zeros(1000)
    long[999] = 1
    half = (lambda x: x + 1, lambda x: x - 1)
    itself = []
    itself.append(itself)

    def different():
        return [
            None,
            True,
            1,
            1.0,
            "1",
            b"1",
            [1],
            (1,),
            {1},
            {"a": 1},
            {"b": 1},
            torch.float16,
            torch.zeros(1000),
            long,
            torch.zeros(1000, dtype=torch.float64),
            torch.zeros(10, 100),
            numbers(1.0),
            numbers(2.0),
            numbers(1.0, offset=0.5),
            functools.partial(numbers, 1.0),
            functools.partial(numbers, 2.0),
            *half,
            Settings(1.0),
            Settings(0.3),
            Settings(torch.ones(3)),
            torch.nn.Linear(2, 2, bias=False).requires_grad_(False),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            torch.nn.Dropout(0.2),
            itself,
            Settings,
        ]

    torch.manual_seed(0)
    texts = [Reader().read(value) for value in different()]
    torch.manual_seed(0)
    assert [Reader().read(value) for value in different()] == texts
    assert len(set(texts)) == len(texts)
    assert origin.known_file(torch.nn.functional.__file__) == "torch/nn/functional.py"


@pytest.mark.parametrize("value", [foreign, foreign(1.0), Settings(1.0), iter([1]), torch.Generator(), open])
def test_what_cannot_be_compared_is_refused(value):
    with pytest.raises(Unreadable):
        Reader().read(value)


@pytest.mark.parametrize("name", ["load", "ops", "float", "__class__", "", "float32.__reduce__"])
def test_a_job_names_dtypes_only(comfyui, name):
    """Other names of torch, or none, are refused: a job's files may come from anywhere."""
    with pytest.raises(KeyError):
        _decode({"dtype": name}, {})
    table = {"loader": next(iter(FOLDERS)), "files": ["a"], "sha256": ["0"], "dtype": name}
    with pytest.raises(InputError, match=r"the job's \[model\] names the dtype"):
        Source.from_table(table, "model")
    assert _decode({"dtype": "float8_e4m3fn"}, {}) is torch.float8_e4m3fn

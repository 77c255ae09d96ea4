"""LORA_STACK of other packs on Inject and Compose LoRAs, and the stack of a run's files.

The forms are those that the packs' own nodes make: Efficiency (`LoRA Stacker`), Comfyroll (`CR LoRA Stack`) and
Easy-Use (`easy loraStack`) give (name, model, clip) and leave out what is "None"; Easy-Use gives None where it is off;
LoRA Manager (`Lora Stacker (LoraManager)`) writes the host's separators; a later Comfyroll gives None for clip where a
LoRA is for the model alone.
"""

from __future__ import annotations

import os
import types

import pytest
import safetensors.torch
import tiny
import torch
from helpers import max_difference

FORMS = {
    "Efficiency, Comfyroll, Easy-Use": [("stacks/one.safetensors", 0.8, 0.5), ("stacks/two.safetensors", -0.4, 0.0)],
    "lists for tuples": [["stacks/one.safetensors", 0.8, 0.5], ["stacks/two.safetensors", -0.4, 0.0]],
    "LoRA Manager": [(os.path.join("stacks", "one.safetensors"), 0.8, 0.5), ("stacks/two.safetensors", -0.4, 0.0)],
    "Windows": [("stacks\\one.safetensors", 0.8, 0.5), ("stacks\\two.safetensors", -0.4, 0.0)],
    "entries that are off": [
        ("None", 1.0, 1.0),
        ("stacks/one.safetensors", 0.8, 0.5),
        ("none", 1, 1),
        (None, 1, 1),
        None,
        ("stacks/two.safetensors", -0.4, 0.0),
    ],
    "model only": [("stacks/one.safetensors", 0.8, 0.5), ("stacks/two.safetensors", -0.4, None)],
    "numbers as text": [["stacks/one.safetensors", "0.8", "0.5"], ["stacks/two.safetensors", " -0.4", "0"]],
    "without an ending": [("stacks/one", 0.8, 0.5), ("stacks/two", -0.4)],
}


@pytest.fixture(scope="module")
def model(comfyui):
    return tiny.patcher(tiny.SMALLEST)


@pytest.fixture(scope="module")
def clip(comfyui):
    return tiny.clip()


@pytest.fixture(scope="module")
def files(comfyui, model):
    """[LoRA of the model and the text encoder] that lie in the loras folder as stacks/one and stacks/two."""
    (comfyui / "models" / "loras" / "stacks").mkdir()
    out = []
    for seed, name in enumerate(("one", "two")):
        lora = tiny.random_lora(tiny.linear_layers(model), 2 + seed, seed=seed)
        at = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
        generator = torch.Generator().manual_seed(seed)
        lora[f"{at}.lora_up.weight"] = torch.randn(2 * tiny.CONTEXT, 2, generator=generator) / 4
        lora[f"{at}.lora_down.weight"] = torch.randn(2, tiny.CONTEXT, generator=generator) / 4
        meta = {"modelspec.trigger_phrase": name}
        safetensors.torch.save_file(lora, comfyui / "models" / "loras" / "stacks" / f"{name}.safetensors", meta)
        out.append(lora)
    return out


def outputs(model, clip):
    return tiny.predict(model), tiny.encode(clip)


@pytest.mark.parametrize("form", FORMS)
def test_a_stack_is_what_cores_loader_makes_one_after_the_other(run_node, model, clip, files, form):
    """Core's LoraLoader with each file and its two strengths is the oracle, as the packs' own loaders call it."""
    at = (model, clip)
    for name, strength, text in (("one", 0.8, 0.5), ("two", -0.4, 0.0)):
        at = run_node(
            "LoraLoader", model=at[0], clip=at[1], lora_name=f"stacks/{name}.safetensors", strength_model=strength,
            strength_clip=text,
        )  # fmt: skip
    wanted, bare = outputs(*at), outputs(model, clip)
    given = {"model": model, "clip": clip, "lora_stack": FORMS[form], "lora_name": "none", "strength_model": 1.0}
    ours = run_node("BespokeInjectLora", **given)
    for found, expected, plain in zip(outputs(*ours[:2]), wanted, bare, strict=True):
        assert max_difference(expected, plain) > 1e-3
        assert max_difference(found, expected) < 1e-4 * max_difference(expected, plain)
    assert ours[3] == "one, two"
    # The scoped file of both, and Compose LoRAs of the stack, do the same at strength 1.
    sums = [ours[4], run_node("BespokeComposeLoras", lora_stack=FORMS[form])[0]]
    for lora in sums:
        again = run_node("BespokeInjectLora", model=model, clip=clip, lora=lora, lora_name="none", strength_model=1.0)
        for found, expected, plain in zip(outputs(*again[:2]), wanted, bare, strict=True):
            assert max_difference(found, expected) < 1e-3 * max_difference(expected, plain)


def test_the_nodes_own_lora_comes_first_and_its_strengths_count_for_all(run_node, model, clip, files):
    stack = [("stacks/two.safetensors", 0.5, 1.0)]
    both = run_node(
        "BespokeInjectLora", model=model, lora_name="stacks/one.safetensors", strength_model=0.5, lora_stack=stack
    )
    one = run_node("BespokeInjectLora", model=model, lora_name="stacks/one.safetensors", strength_model=0.5)
    two = run_node("BespokeInjectLora", model=one[0], lora_name="stacks/two.safetensors", strength_model=0.25)
    bare, wanted = tiny.predict(model), tiny.predict(two[0])
    assert max_difference(tiny.predict(both[0]), wanted) < 1e-4 * max_difference(wanted, bare)
    assert both[2].index("one.safetensors") < both[2].index("two.safetensors")


OFF = (None, [], [("None", 1.0, 1.0)])


@pytest.mark.parametrize("stack", OFF)
def test_a_stack_with_all_loras_off_changes_nothing(run_node, model, clip, stack):
    """As the packs' own loaders: model and clip go through. Easy-Use's stacker gives None where it is off."""
    given = dict(model=model, clip=clip, lora_name="none", strength_model=1.0)
    ours = run_node("BespokeInjectLora", **given, lora_stack=stack)
    assert ours[0] is model
    assert ours[1] is clip
    assert "lora_stack has no LoRA that is on" in ours[2]
    assert ours[4] == {}
    with pytest.raises(ValueError, match="no LoRA is chosen"):
        run_node("BespokeInjectLora", **given)
    with pytest.raises(ValueError, match="no LoRA is wired in"):
        run_node("BespokeComposeLoras", lora_stack=stack)


def test_strengths_of_0_in_a_stack_and_beside_one(run_node, files):
    """A sum of nothing is refused, wherever the zeros stand; LoRAs beside them are summed."""
    off, on = [("stacks/one", 0.0, 0.0)], [("stacks/one", 0.5, 0.0)]
    with pytest.raises(ValueError, match="all strengths are 0"):
        run_node("BespokeComposeLoras", lora_stack=off)
    alone = run_node("BespokeComposeLoras", lora_stack=on)[0]
    both = run_node("BespokeComposeLoras", loras={"lora0": files[1]}, strengths="0", lora_stack=on)[0]
    assert both.keys() == alone.keys()
    assert all(torch.equal(both[key], alone[key]) for key in alone)


def test_a_file_of_a_stack_that_changes_is_read_again(comfyui, files):
    """Its name comes over the wire: any change in the loras folder is another stamp, none without a stack."""
    from bespoke.nodes.lora.composition.node import ComposeLoras
    from bespoke.nodes.lora.injection.node import InjectLora

    def stamps():
        given = {"lora_stack": None}  # what ComfyUI gives for a wire
        return [
            InjectLora.fingerprint_inputs(lora_name="none", **given),
            ComposeLoras.fingerprint_inputs(**given),
            InjectLora.fingerprint_inputs(lora_name="none"),
            ComposeLoras.fingerprint_inputs(strengths=""),
        ]

    before = stamps()
    safetensors.torch.save_file(files[0], comfyui / "models" / "loras" / "stacks" / "later.safetensors")
    after = stamps()
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True, True]


def test_parts_of_the_schedule_that_differ_are_named(run_node, comfyui, model, files):
    """One file is for the noisy half, the other for all: their sum acts everywhere, and the report says so."""
    meta = {"modelspec.timestep_range": "500,1000"}
    safetensors.torch.save_file(files[0], comfyui / "models" / "loras" / "stacks" / "noisy.safetensors", meta)
    stack = [("stacks/noisy", 1.0, 1.0), ("stacks/two", 1.0, 1.0)]
    given = dict(model=model, lora_name="none", strength_model=1.0)
    *_, report, _, lora = run_node("BespokeInjectLora", **given, lora_stack=stack)
    assert "They are for different parts of the schedule, which one file cannot hold" in report
    assert "bespoke.timestep_range" not in lora.meta
    *_, report, _, lora = run_node("BespokeInjectLora", **given, lora_stack=[stack[0], stack[0]])
    assert "different parts" not in report
    assert lora.meta["modelspec.timestep_range"] == "500,1000"


def test_two_hundred_entries(run_node, model, files):
    """By hand: 200 times a hundredth and twice 0 is the LoRA at 2."""
    stack = [("stacks/one", 0.01, 0.0)] * 200 + [("stacks/two", 0.0, 0.0)] * 2
    many = run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora_stack=stack)[0]
    once = run_node("BespokeInjectLora", model=model, lora_name="stacks/one.safetensors", strength_model=2.0)[0]
    bare, wanted = tiny.predict(model), tiny.predict(once)
    assert max_difference(tiny.predict(many), wanted) < 1e-3 * max_difference(wanted, bare)


def test_absolute_paths_stay_in_the_loras_folder(run_node, comfyui, model, files, tmp_path):
    inside = comfyui / "models" / "loras" / "stacks" / "one.safetensors"
    given = dict(model=model, lora_name="none", strength_model=1.0)
    assert run_node("BespokeInjectLora", **given, lora_stack=[(str(inside), 1.0, 1.0)])[0].patches
    outside = tmp_path / "outside.safetensors"
    safetensors.torch.save_file(files[0], outside)
    for name in (str(outside), os.path.relpath(outside, inside.parent.parent), f"stacks/../../{outside}"):
        with pytest.raises(ValueError, match="is not in ComfyUI's loras folder"):
            run_node("BespokeInjectLora", **given, lora_stack=[(name, 1.0, 1.0)])


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("style.safetensors", "lora_stack is of the kind str"),
        ([{"name": "one", "strength": 1.0}], "item 1 of lora_stack is {'name'"),
        ([("stacks/one", 1.0, 1.0), ("stacks/one", 1.0, 1.0, 1.0)], "item 2 of lora_stack is"),
        ([({"a": torch.zeros(1)}, 1.0, 1.0)], "item 1 of lora_stack has a dict for a file name"),
        ([("stacks/one", "much", 1.0)], "item 1 of lora_stack has the strength 'much'"),
        (
            [("None", 1.0, 1.0), ("stacks/gone", 1.0, 1.0)],
            "item 2 of lora_stack: 'stacks/gone' is not in ComfyUI's loras folder; choose another one in the node that",
        ),
        ([("../../secret", 1.0, 1.0)], "is not in ComfyUI's loras folder"),
    ],
)
def test_other_forms_are_named(run_node, model, files, stack, words):
    with pytest.raises(ValueError, match="^Bespoke Inject LoRA: ") as error:
        run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora_stack=stack)
    assert words in str(error.value)


def test_a_stack_of_a_runs_files(run_node, comfyui, model, files):
    """The last file, or that of a step, in the packs' form, after what was in the stack."""
    run = types.SimpleNamespace(id="20260101-stack")
    with pytest.raises(ValueError, match="^Bespoke LoRA Stack from Run: the run 20260101-stack saved no LoRA"):
        run_node("BespokeLoraStackFromRun", run=run)
    folder = comfyui / "models" / "loras" / "bespoke" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    for step, lora in zip((20, 100), files, strict=True):
        safetensors.torch.save_file(lora, folder / f"{run.id}-step{step:06}.safetensors")
    before = [("stacks/one.safetensors", 0.8, 0.5)]
    stack, report = run_node("BespokeLoraStackFromRun", run=run, lora_stack=before, strength_model=0.7)
    last = os.path.join("bespoke", "runs", "20260101-stack-step000100.safetensors")
    assert stack == [*before, (last, 0.7, 1.0)]
    assert before == [("stacks/one.safetensors", 0.8, 0.5)]
    assert report.splitlines()[1].endswith("step000100.safetensors: model 0.7, text encoder 1.")
    with pytest.raises(ValueError, match="^Bespoke LoRA Stack from Run: lora_stack is of the kind int"):
        run_node("BespokeLoraStackFromRun", run=run, lora_stack=3)
    assert run_node("BespokeLoraStackFromRun", run=run, step=20)[0][0][0].endswith("step000020.safetensors")
    with pytest.raises(ValueError, match="step is 30, and the run saved files at 20, 100"):
        run_node("BespokeLoraStackFromRun", run=run, step=30)
    injected = run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora_stack=stack)
    assert injected[0].patches

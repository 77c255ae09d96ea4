"""Interrupts of the real trainer in every phase: the same request afterwards ends in the same bits.

The phases are calls of functions; see `phases.wrap_all`. What is pressed is the page's Cancel.
"""

import json
import shutil

import pytest
import tiny
import torch
from bespoke.nodes.bridge.runs import monitor
from bespoke.nodes.bridge.runs.samples import SamplerSettings
from helpers import sprite_set
from phases import FAULTS, forget_encoded, wrap_all

SETTINGS = dict(
    batch_size=1,
    rank=2,
    alpha=2.0,
    learning_rate=1e-2,
    steps=4,
    seed=5,
    precision="fp32",
    lr_schedule="constant",
    save_every=2,
    sample_every=2,
    keep="last",
)
# A set with held-out pictures, and one that is so small that three trainings leave two pictures out each.
SETS = {"held out": (12, {"validation": 2}), "cross-validation": (6, {"validation": 2, "sample_every": 0})}


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


@pytest.fixture(scope="module")
def phases(comfyui):
    """The functions of all phases report their calls, in this module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        wrap_all(patch.setattr)
        patch.setattr(monitor, "AUTOSAVE_SECONDS", -1.0)  # the state is saved after each step
        sampler = SamplerSettings(steps=1, cfg=1.0)
        patch.setattr("bespoke.nodes.lora.training.node.settings_in", lambda prompt, default=None: sampler)
        yield


@pytest.fixture
def train(models, run_node, runs, phases, monkeypatch):
    """train(kind, phase, at): the outputs of a training that is interrupted there, or None where it ended for it."""
    import comfy.model_management

    model, clip, vae = models
    monkeypatch.setattr("os.fsync", lambda handle: None)

    def run(kind, phase="", at=0):
        count, more = SETS[kind]
        forget_encoded()
        FAULTS.arm(phase, at, "interrupt")
        images = sprite_set(2, count, side=64, colour="teal")
        try:
            return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **SETTINGS | more)
        except comfy.model_management.InterruptProcessingException:
            return None
        finally:
            comfy.model_management.interrupt_current_processing(False)  # as ComfyUI does before the next prompt

    return run


def equal(one, other):
    """Whether two trainings have the same LoRA, losses, held-out curve and samples."""
    (_, a, losses_a, run_a, *_), (_, b, losses_b, run_b, *_) = one, other
    return (
        all(torch.equal(a[name], b[name]) for name in a)
        and losses_a == losses_b
        and run_a.held_out == run_b.held_out
        and run_a.samples == run_b.samples
        and run_a.state == run_b.state == "finished"
    )


def states(runs):
    return [json.loads(path.read_text())["state"] for path in sorted(runs.glob("lora-*/record.json"))]


def interrupt_everywhere(train, runs, kind, every=1):
    """Interrupt each `every`-th call of each phase; prints a table of how the runs ended."""
    whole, counts = train(kind), dict(FAULTS.counts)
    print(f"\n{kind}: {sum(counts.values())} calls of {len(counts)} phases")
    for phase, calls in counts.items():
        ended = done = 0
        for at in range(1, calls + 1, every):
            shutil.rmtree(runs, ignore_errors=True)  # none is there after an interrupt before the first record
            broken = train(kind, phase, at)
            assert "running" not in (left := states(runs) if runs.exists() else []), (phase, at)
            assert (broken is None) == ("interrupted" in left or not left or (len(left) < len(SETS) and broken is None))
            again = train(kind)
            assert again is not None
            assert equal(again, whole), (phase, at)
            assert list(runs.glob("*.lease")) == []
            ended, done = ended + (broken is None), done + (broken is not None)
        print(f"{phase:>11}: {ended:3} interrupted, {done:2} had ended, all resumed to the same bits", flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETS)
def test_an_interrupt_at_any_call_of_any_phase(train, runs, kind):
    interrupt_everywhere(train, runs, kind, every=1 if kind == "held out" else 4)


@pytest.mark.parametrize(("phase", "at"), [("picture", 2), ("caption", 2), ("measure", 1), ("validation", 2)])
def test_an_interrupt_is_taken_before_the_phase_has_ended(train, runs, phase, at):
    """Encoding and scoring may take minutes. No step is trained after it, and the same request goes on."""
    assert train("held out", phase, at) is None
    calls = FAULTS.counts
    assert calls.get("update", 0) == (SETTINGS["steps"] if phase == "validation" else 0)
    assert calls[phase] <= at + 1
    assert "running" not in states(runs) if runs.exists() else True

"""Interrupt, finish, go on: nothing that was trained is lost."""

import comfy.model_management
import comfy.utils
import pytest
import torch
from bespoke.nodes.bridge.runs.store import RunStore, list_runs, request_finish
from comfy.patcher_extension import WrappersMP
from helpers import sprite_set
from torch.optim.optimizer import register_optimizer_step_post_hook


@pytest.fixture
def at_step():
    """at_step(n, do): call `do` when the training's progress bar reaches step n."""

    def arm(step, do):
        def hook(value, total, preview=None, node_id=None, **_):
            if value >= step:
                comfy.utils.set_progress_bar_global_hook(None)
                do()

        comfy.utils.set_progress_bar_global_hook(hook)

    yield arm
    comfy.utils.set_progress_bar_global_hook(None)


def request(small, seed, **changes):
    model, clip, vae = small
    return dict(model=model, clip=clip, vae=vae, images=sprite_set(2, 6, side=64, colour="teal"), batch_size=2, precision="fp32", seed=seed) | changes


def test_an_interrupt_keeps_the_lora_and_queueing_again_ends_bit_identical(small, run_node, at_step, comfyui):
    whole = run_node("BespokeTrainLora", **request(small, 21, steps=8, resume=False))
    at_step(3, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node("BespokeTrainLora", **request(small, 21, steps=8, resume=False))
    record = next(run for run in list_runs() if run.id == whole[3].id)
    assert record.state == "interrupted"
    done = len(record.losses)
    assert 3 <= done < 8
    assert (comfyui / "models" / "loras" / "bespoke" / "runs" / f"{record.id}-step{done:06}.safetensors").is_file()
    again = run_node("BespokeTrainLora", **request(small, 21, steps=8))
    assert again[2]["loss"] == whole[2]["loss"]
    assert all(torch.equal(value, again[1][key]) for key, value in whole[1].items())
    assert not small[0].model.diffusion_model.training
    assert not comfy.model_management.in_training


def test_a_ctrl_c_in_the_middle_of_a_step_keeps_the_last_whole_state(small, run_node):
    """The command's second one comes at any moment, also when a step is half done."""
    whole = run_node("BespokeTrainLora", **request(small, 31, steps=6, save_every=2, resume=False))
    steps = 0

    def interrupt(*_) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_node("BespokeTrainLora", **request(small, 31, steps=6, save_every=2, resume=False))
    finally:
        hook.remove()
    again = run_node("BespokeTrainLora", **request(small, 31, steps=6, save_every=2))
    assert again[2]["loss"] == whole[2]["loss"]
    assert all(torch.equal(value, again[1][key]) for key, value in whole[1].items())


def test_finish_hands_on_what_there_is_and_more_steps_go_on(small, run_node, at_step):
    seen = {}

    def finish():
        run = max(list_runs(), key=lambda run: run.started)
        seen["id"] = run.id
        request_finish(run.id)

    at_step(2, finish)
    first = run_node("BespokeTrainLora", **request(small, 22, steps=50))
    done = len(first[2]["loss"])
    assert first[3].state == "kept"
    assert 2 <= done < 50
    assert any(value.abs().max() > 0 for key, value in first[1].items() if "up" in key)
    same = run_node("BespokeTrainLora", **request(small, 22, steps=50))
    assert len(same[2]["loss"]) == done
    assert all(torch.equal(value, same[1][key]) for key, value in first[1].items())
    more = run_node("BespokeTrainLora", **request(small, 22, steps=51, lr_schedule="cosine"))
    assert len(more[2]["loss"]) == 51
    assert more[2]["loss"][:done] == first[2]["loss"]


def test_fewer_steps_begin_anew_and_set_the_longer_run_aside(small, run_node):
    long = run_node("BespokeTrainLora", **request(small, 23, steps=4))
    short = run_node("BespokeTrainLora", **request(small, 23, steps=2))
    assert len(short[2]["loss"]) == 2
    folder = RunStore(long[3].id).folder
    assert list(folder.parent.glob(f"{folder.name}.*/state.safetensors"))


def test_a_broken_state_begins_anew(small, run_node):
    first = run_node("BespokeTrainLora", **request(small, 24, steps=3))
    folder = RunStore(first[3].id).folder
    (folder / "state.safetensors").write_bytes(b"\x00" * 40)
    (folder / "record.json").write_text('{"id": [[[')
    again = run_node("BespokeTrainLora", **request(small, 24, steps=3))
    assert again[2]["loss"] == first[2]["loss"]


def test_saves_on_the_way(small, run_node, comfyui):
    _, _, _, run, *_ = run_node("BespokeTrainLora", **request(small, 25, steps=4, save_every=2))
    folder = comfyui / "models" / "loras" / "bespoke" / "runs"
    assert sorted(p.name for p in folder.glob(f"{run.id}*")) == [f"{run.id}-step00000{n}.safetensors" for n in (2, 4)]


def test_held_out_pictures_are_not_trained_on_and_the_best_is_kept(small, run_node):
    ten = sprite_set(2, 10, side=64, colour="teal")
    args = request(small, 26, images=ten, steps=20, validation=2, learning_rate=1e-2)
    _, lora, _, run, report, _ = run_node("BespokeTrainLora", **args)
    assert run.images == 8
    assert [step for step, _ in run.held_out] == [0, 10, 20]
    assert "Held-out loss" in report
    _, last, *_ = run_node("BespokeTrainLora", **args | {"keep": "last"})
    best_step = run.best[0]
    assert all(torch.equal(lora[k], last[k]) for k in lora) == (best_step == 20)
    _, _, _, own_set, *_ = run_node("BespokeTrainLora", **request(small, 27, steps=10, validation_images=sprite_set(9, 2, side=64, colour="teal")))
    assert own_set.images == 6
    assert len(own_set.held_out) == 2


def test_a_word_goes_on_too(small, run_node, at_step):
    model, clip, vae = small
    args = dict(model=model, clip=clip, vae=vae, images=sprite_set(3, 4, side=64, colour="pink"), name="w", init_text="red", steps=5,
                batch_size=1, precision="fp32", seed=3)  # fmt: skip
    whole = run_node("BespokeTrainTextualInversion", **args, resume=False)
    at_step(2, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node("BespokeTrainTextualInversion", **args, resume=False)
    again = run_node("BespokeTrainTextualInversion", **args)
    assert torch.equal(whole[1]["clip_l"], again[1]["clip_l"])
    assert whole[3]["loss"] == again[3]["loss"]


def test_a_nan_keeps_the_last_good_state(small, run_node):
    """A MODEL whose answers turn to NaN after a while, through a wrapper on the wire, as a broken patch would."""
    calls = 0

    def breaks(executor, *args, **kwargs):
        nonlocal calls
        calls += 1
        return executor(*args, **kwargs) * (float("nan") if calls > 4 else 1.0)  # the first call is the preflight's

    broken = small[0].clone()
    broken.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "breaks", breaks)
    with pytest.raises(ValueError, match=r"Bespoke Train LoRA: the loss at step 4 is nan.*what was learned before it is kept"):
        run_node("BespokeTrainLora", **request(small, 28, steps=30, model=broken))
    record = max(list_runs(), key=lambda run: run.started)
    assert record.state == "failed"
    state = RunStore(record.id).state()
    assert state.step == len(record.losses) == 3
    assert all(torch.isfinite(t).all() for t in state.trained.values())

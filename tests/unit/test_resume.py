"""A run that is stopped and resumed equals one that was never stopped; the held-out curve decides what is kept."""

import json
import math
from dataclasses import asdict, dataclass, field

import pytest
import torch
from bespoke.training.checkpoint import optimizer_state, pack, unpack
from bespoke.training.config import ADDED, TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.errors import InputError
from bespoke.training.loop import Training
from bespoke.training.optimizers import OPTIMIZERS, make_optimizer
from bespoke.training.randomness import noise
from bespoke.training.record import Run, RunInfo, RunState
from bespoke.training.run_identity import NOT_IDENTITY, SETTINGS_0_1, defaults_of, run_id
from bespoke.training.validation import TIMESTEPS, folds, mean_curve, split, validation_batches, validation_scorer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_training import copy_of, one_layer

CPU = torch.device("cpu")


def problem(seed=0):
    layer, lora = one_layer(12, 9, rank=3, alpha=3, seed=seed)
    target = torch.randn(9)

    def loss(micro):
        return (layer(noise(1, micro, 0, (5, 12))) - target).square().mean()

    def held_out():
        return (layer(noise(99, 0, 0, (5, 12))) - target).square().mean().item()

    return lora, loss, held_out


def config(steps, **changes):
    return TrainConfig(
        **{"learning_rate": 3e-2, "batch_size": 1, "seed": 0, "max_grad_norm": 0.5} | changes, steps=steps
    )


def run(lora, loss, held_out, steps, state=None, stop=None, **changes):
    training = Training(lora, loss, config(steps, **changes), held_out, state)
    events = []
    with lora.attached():
        for event in training:
            events.append(event)
            if event.step == stop:
                break
    return training, events


@pytest.mark.parametrize("stop", [1, 7, 39])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "cosine with restarts"])
def test_resumed_run_is_bit_identical(tmp_path, stop, schedule):
    whole_lora, *rest = problem()
    _, whole = run(whole_lora, *rest, 40, lr_schedule=schedule, warmup_steps=3)
    lora, *rest = problem()
    training, first = run(lora, *rest, 40, stop=stop, lr_schedule=schedule, warmup_steps=3)
    tensors, meta = pack(training.state())
    save_file(tensors, tmp_path / "state.safetensors", metadata=meta)
    fresh, *rest = problem(seed=5)  # other initial values: the state has to replace them
    state = unpack(load_file(tmp_path / "state.safetensors"), meta)
    again, second = run(fresh, *rest, 40, state=state, lr_schedule=schedule, warmup_steps=3)
    assert [e.loss for e in first + second] == [e.loss for e in whole]
    assert [e.learning_rate for e in first + second] == [e.learning_rate for e in whole]
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in whole_lora.state_dict().items())
    assert again.best_step == max((e.step for e in whole if e.best), default=0)


def test_more_steps_resume_from_the_end():
    lora, *rest = problem()
    training, _ = run(lora, *rest, 10)
    again, events = run(lora, *rest, 15, state=training.state())
    assert [e.step for e in events] == [11, 12, 13, 14, 15]
    assert again.steps_done == 15


def test_the_best_state_is_the_one_that_scored_best():
    lora, loss, _ = problem()
    curve = iter([3.0, 1.0, 2.0, 5.0])
    training, events = run(lora, loss, lambda: next(curve), 40)
    assert [(e.step, e.validation_loss, e.best) for e in events if e.validation_loss is not None] == [
        (10, 3.0, True),
        (20, 1.0, True),
        (30, 2.0, False),
        (40, 5.0, False),
    ]
    assert (training.best_step, training.best_loss) == (20, 1.0)
    assert not torch.equal(training.best["a.to_q.lora_up.weight"], lora.state_dict()["a.to_q.lora_up.weight"])


def test_split_leaves_something_to_train_on():
    copies = [[i] for i in range(10)]
    trained, held = split(copies, 3, 0)
    assert sorted(trained + held) == list(range(10))
    assert len(held) == 3
    assert split(copies, 3, 0) == (trained, held)
    with pytest.raises(InputError, match="3 of 3 pictures"):
        split(copies[:3], 3, 0)


def test_copies_of_a_picture_stay_in_one_split():
    copies = [[i, i + 12, i + 24, i + 36] for i in range(12)]  # mirrored and repeated copies
    trained, held = split(copies, 4, 1)
    assert len(held) == 4
    assert all(i < 12 for i in held)  # scored once
    assert {i % 12 for i in trained} | set(held) == set(range(12))
    assert not {i % 12 for i in trained} & set(held)
    assert len(trained) == 8 * 4


@pytest.mark.parametrize(("count", "held_out", "fold_count"), [(9, 1, 3), (9, 3, 3), (8, 3, 2), (5, 3, 1), (2, 1, 2)])
def test_folds_leave_out_other_pictures_each(count, held_out, fold_count):
    found = folds([[i] for i in range(count)], held_out, 0)
    assert len(found) == fold_count
    for trained, held in found:
        assert sorted(trained + held) == list(range(count))
        assert len(held) == held_out
    out = [i for _, held in found for i in held]
    assert len(set(out)) == len(out)
    with pytest.raises(InputError, match=f"validation is {count} of {count} pictures"):
        folds([[i] for i in range(count)], count, 0)


def test_the_mean_of_curves_is_over_common_steps():
    assert mean_curve([[(0, 4.0), (10, 2.0), (20, 3.0)], [(0, 2.0), (10, 1.0)]]) == [(0, 3.0), (10, 1.5)]


def test_a_training_can_stop_before_its_schedule_ends():
    lora, loss, _ = problem()
    training = Training(lora, loss, config(40), until=12)
    with lora.attached():
        short = list(training)
    other, loss, _ = problem()
    with other.attached():
        whole = list(Training(other, loss, config(40)))
    assert [(e.loss, e.learning_rate) for e in short] == [(e.loss, e.learning_rate) for e in whole[:12]]
    assert short[-1].steps == 12


def test_the_grid_is_fixed_and_does_not_depend_on_the_seed():
    data = LatentSet([torch.randn(1, 4, 8, 8) for _ in range(4)], [None] * 4)
    one, two = validation_batches(data, [1, 3], CPU), validation_batches(data, [1, 3], CPU)
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(one, two, strict=True))
    assert one[0].t.tolist() == pytest.approx(TIMESTEPS)
    assert torch.equal(one[1].latent[2], data.latents[3][0])
    score = validation_scorer(one, lambda batch: batch.t * 0 + batch.number)
    assert score() == 0.5


def test_record_round_trip_and_over_fitting():
    run = Run(RunInfo("lora-0123456789ab", "lora", {"steps": 3}, "base", 2))
    run.losses, run.held_out = [1.0, math.nan, 0.5], [(10, 1.0), (20, 0.5), (30, 0.6)]
    text = run.to_json()
    assert "NaN" not in text
    back = Run.from_json(text)
    assert math.isnan(back.losses[1])
    assert back.held_out == run.held_out
    assert back.best == (20, 0.5)
    assert back.over_fitting_since() == 20
    for hostile in (
        "[]",
        "3",
        "{}",
        '{"id": 1}',
        "not json",
        '{"id": "x", "technique": "lora", "settings": {}, "base": "b", "images": 1, "losses": 5}',
        text.replace('"running"', '"dancing"'),
        text.replace('"settings": {"steps": 3}', '"settings": 3'),
        text.replace('"trigger": ""', '"trigger": 1'),
        text.replace('"seconds": 0.0', '"seconds": "1"'),
        text.replace('"folds": 0', '"folds": null'),
    ):
        assert hostile != text
        with pytest.raises(ValueError):
            Run.from_json(hostile)
    assert Run.from_json(text.replace('"folds": 0', '"rotations": 3')).folds == 3  # the field's name in version 0.1


def test_run_states_have_the_names_of_files_and_events():
    assert [str(state) for state in RunState] == ["running", "finished", "kept", "interrupted", "failed"]
    assert json.dumps(list(RunState)) == '["running", "finished", "kept", "interrupted", "failed"]'
    assert f"{RunState.KEPT}" == RunState.KEPT == "kept"


def test_earlier_progress_is_cut_at_the_state():
    def run(**progress):
        return Run(RunInfo("lora-0123456789ab", "lora", {}, "base", 2), **progress)

    earlier = run(
        losses=[1.0, 2.0, 3.0, 4.0],
        held_out=[(0, 9.0), (2, 8.0), (4, 7.0)],
        samples=[(2, "000002.png"), (4, "000004.png")],
        seconds=5.0,
    )
    one, scored, unread, long = run(), run(held_out=[(0, 1.0)]), run(), run()
    one.restore_progress(earlier, 3)
    assert (one.losses, one.held_out, one.samples) == ([1.0, 2.0, 3.0], [(0, 9.0), (2, 8.0)], [(2, "000002.png")])
    assert one.seconds == 5.0
    scored.restore_progress(earlier, 3, held_out=False)
    assert scored.held_out == [(0, 1.0)]
    unread.restore_progress(None, 2)
    assert len(unread.losses) == 2
    assert all(map(math.isnan, unread.losses))
    long.restore_progress(earlier, 6)
    assert long.losses[:4] == earlier.losses
    assert all(map(math.isnan, long.losses[4:]))
    assert len(long.losses) == 6
    one.losses.append(0.0)
    assert len(earlier.losses) == 4


def test_the_quarters_leave_out_lost_losses():
    def quarters(*losses):
        return Run(RunInfo("lora-0123456789ab", "lora", {}, "base", 2), list(losses)).quarters()

    lost = math.nan
    assert quarters(8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.5) == (7.0, 0.5)
    assert quarters(8.0, lost, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.5, lost) == (7.0, 0.5)
    assert quarters() == (0.0, 0.0)
    assert all(map(math.isnan, quarters(lost, lost)))


def test_run_id_ignores_the_length():
    settings = {"steps": 10, "seed": 1, "keep": "best", "rank": 4}
    name = run_id("lora", settings, "images", "base")
    assert name == run_id("lora", settings | {"steps": 99, "keep": "last"}, "images", "base")
    for other in (settings | {"seed": 2}, settings | {"rank": 8}):
        assert name != run_id("lora", other, "images", "base")
    assert name != run_id("lora", settings, "other images", "base")
    assert name != run_id("lora", settings, "images", "other base")


# A request of version 0.1 with all its settings, by technique.
SHARED_0_1 = {
    name: value
    for name, value in asdict(TrainConfig(400, 1e-4, 1, 0)).items()
    if name not in ADDED or name in NOT_IDENTITY
}
REQUESTS_0_1 = {
    "lora": SHARED_0_1
    | dict(targets="cross-attention", rank=8, alpha=8.0, custom_targets="", precision="auto", sample_prompt="")
    | dict(train_text_encoder=False, text_encoder_lr=0.0, loraplus_lr_ratio=4.0),
    "textual inversion": SHARED_0_1
    | dict(name="w", init_text="red", vectors=1, init="words", template="object", norm_limit=0.0)
    | dict(precision="auto", sample_prompt=""),
}


@pytest.mark.parametrize(
    ("technique", "changes", "images", "base", "expected"),
    [
        ("lora", {}, "images", "base", "lora-3f9c44f8455a"),
        (
            "lora",
            dict(rank=16, noise_offset=0.05, ema=0.99, caption_dropout=0.1, optimizer="SGD", steps=9),
            "i|v|p|s",
            "abc",
            "lora-40c35e8cf617",
        ),
        ("textual inversion", {}, "images", "base", "textual-inversion-10b878860f3f"),
        (
            "textual inversion",
            dict(vectors=4, template="style", keep="last", seed=2**64 - 1),
            "images",
            "base",
            "textual-inversion-2e4e67164dfb",
        ),
    ],
)
def test_a_request_of_0_1_keeps_its_id(technique, changes, images, base, expected):
    """Version 0.1 computed these ids; its states are found by them."""
    settings = REQUESTS_0_1[technique] | changes
    assert set(settings) == SETTINGS_0_1[technique] | NOT_IDENTITY
    assert run_id(technique, settings, images, base) == expected
    # The defaults make no difference: 0.1 hashed all of its settings.
    assert run_id(technique, settings, images, base, settings) == expected


def test_the_id_of_a_fold_is_stable():
    assert run_id("lora", {"rotation": 2}, "lora-0123456789ab", "") == "lora-b17dd7a4e00e"


@pytest.mark.parametrize("technique", sorted(REQUESTS_0_1))
def test_a_later_setting_counts_where_it_is_not_at_its_default(technique):
    @dataclass
    class Later:
        needed: str
        huber: float = 0.0
        masked: bool = False
        many: list = field(default_factory=list)

    defaults = defaults_of(TrainConfig, Later)
    assert {"huber": 0.0, "masked": False, "optimizer": "AdamW"}.items() <= defaults.items()
    assert not {"needed", "many", "seed"} & set(defaults)
    settings = REQUESTS_0_1[technique]

    def named(**later):
        return run_id(technique, settings | later, "images", "base", defaults)

    old = run_id(technique, settings, "images", "base")
    assert named(huber=0.0, masked=False) == named(huber=0) == old
    ids = [old, named(huber=0.1), named(huber=0.2), named(masked=True), named(huber=0.1, masked=True), named(needed="")]
    assert len(set(ids)) == len(ids)


def made_here(optimizer):
    """Skip where the package of an optimiser is missing. bitsandbytes is none of the tests' requirements: 43 MB."""
    if OPTIMIZERS[optimizer].package:
        pytest.importorskip(OPTIMIZERS[optimizer].package)


LEARNING_RATES = {"SGD": 0.1}  # instead of 3e-2, at which it would not learn enough in 40 steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_every_optimiser_and_ema_resume_bit_identically(tmp_path, optimizer, ema):
    made_here(optimizer)
    more = dict(optimizer=optimizer, ema=ema, learning_rate=LEARNING_RATES.get(optimizer, 3e-2))
    whole_lora, *rest = problem()
    start = rest[1]()
    whole, events = run(whole_lora, *rest, 40, **more)
    lora, *rest = problem()
    training, _ = run(lora, *rest, 40, stop=17, **more)
    tensors, meta = pack(training.state())
    save_file(tensors, tmp_path / "state.safetensors", metadata=meta)
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        state = unpack({key: file.get_tensor(key) for key in file.keys()}, file.metadata())  # noqa: SIM118
    lora, *rest = problem()
    again, later = run(lora, *rest, 40, state=state, **more)
    assert [event.loss for event in later] == [event.loss for event in events[17:]]
    assert all(torch.equal(value, again.result()[key]) for key, value in whole.result().items())
    assert again.found_rate == whole.found_rate
    # It learns. A rate that is found begins at 1e-6 and is small for most of 40 steps.
    assert whole.best_loss < (1.0 if OPTIMIZERS[optimizer].finds_rate else 0.95) * start


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimisers_state_takes_the_bytes_that_the_forecast_counts(optimizer):
    """After one step on a LoRA's factor of rank 16, within one byte for each number. All is float32 or 8 bits."""
    made_here(optimizer)
    factor = torch.nn.Parameter(torch.randn(16, 1024))
    factor.grad = torch.randn(16, 1024)
    made = make_optimizer(optimizer, [([factor], 1e-3)], 1e-3)
    made.step()
    state = [value for value in optimizer_state(made)[0].values() if isinstance(value, torch.Tensor)]
    assert {value.dtype for value in state} <= {torch.float32, torch.uint8}
    each = sum(value.nbytes for value in state) / factor.numel()
    assert OPTIMIZERS[optimizer].state_bytes - 1 < each < OPTIMIZERS[optimizer].state_bytes + 0.2


def test_ema_is_scored_and_returned():
    lora, loss, held_out = problem()
    training, _ = run(lora, loss, held_out, 60, ema=0.9, keep="last")
    last = copy_of(lora)
    mean = training.result()
    assert all(torch.equal(value, lora.state_dict()[key]) for key, value in last.items())  # the parameters are restored
    assert any(not torch.equal(mean[key], last[key]) for key in mean)
    lora.load_state_dict(mean)
    with lora.attached(), torch.no_grad():
        assert held_out() == pytest.approx(training.state().best_loss, rel=0.5)


def test_early_stop_after_patience():
    lora, loss, _ = problem()
    scores = iter([5.0, 4.0, 3.0, *[3.5] * 50])
    training, events = run(lora, loss, lambda: next(scores), 400, patience=3)
    assert training.config.validate_every == 20
    assert training.best_step == 60
    assert events[-1].step == 120  # three validations after the best
    assert training.result() == training.best


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("constant", 1.0, 1.0), ("linear", 0.5, 1 / 80), ("cosine", 0.5, 0.0004), ("cosine with restarts", 1.0, 0.0016)],
)
def test_learning_rate_schedules(schedule, middle, last):
    lora, *rest = problem()
    _, events = run(lora, *rest, 90, lr_schedule=schedule, warmup_steps=10, learning_rate=1e-2)
    rates = [event.learning_rate / 1e-2 for event in events]
    assert rates[:10] == pytest.approx([(1 + i * 10 / 10) / 11 for i in range(10)], rel=1e-6)
    assert rates[10] == pytest.approx(1.0)
    assert rates[50] == pytest.approx(middle)
    assert rates[-1] == pytest.approx(last, abs=2e-4)

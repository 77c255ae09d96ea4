"""Costs that may grow: step 10 and step 2,000 of a run, a save after a million steps, the memory of ten trainings.

python3 dev.py test -m bench tests/bench/bench_long_runs.py -s
"""

import gc

import numpy as np
import pytest
import tiny
import torch

pytestmark = pytest.mark.bench
STEPS = 2050
TRAININGS, MOST_MB = 10, 50


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def train(run_node, models, seed, **changes):
    from helpers import sprite_set  # imports ComfyUI, which is there only now

    model, clip, vae = models
    settings = dict(
        images=sprite_set(seed, 10, side=64, colour="teal"),
        steps=40,
        batch_size=2,
        rank=4,
        alpha=4.0,
        precision="fp32",
        resume=False,
        seed=seed,
    )
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, **settings | changes)


def test_cost_of_step_2000(models, run_node, monkeypatch):
    """The time of each step, including the display, the autosave and the held-out scores."""
    import time

    from bespoke.nodes.bridge.runs.monitor import RunMonitor

    times = []
    original = RunMonitor.record

    def record_time(self, event):
        times.append(time.perf_counter())
        original(self, event)

    monkeypatch.setattr(RunMonitor, "record", record_time)
    losses = train(run_node, models, 1, steps=STEPS)[2]["loss"]
    assert len(losses) == STEPS
    steps = np.diff(times) * 1e3
    print("\nsteps          median ms   90th percentile ms")
    windows = {}
    for first in (10, 500, 1000, 1500, 2000):
        window = steps[first - 5 : first + 45]
        windows[first] = float(np.median(window))
        print(f"{first:>5} to {first + 50:>5} {windows[first]:11.1f} {np.percentile(window, 90):20.1f}")
    quarters = [float(np.median(part)) for part in np.array_split(steps, 4)]
    print("quarters of the run, median ms:", " ".join(f"{value:.1f}" for value in quarters))
    assert quarters[3] < 1.15 * quarters[0]


def test_cost_of_a_save_after_a_million_steps(comfyui, tmp_path):
    """Each save adds the losses of 100 steps. For comparison: the time to write a record with all losses."""
    import time

    from bespoke.nodes.bridge.runs.store import RunStore, write_text
    from bespoke.training.checkpoint import State
    from run_records import make_run

    def median_ms(action) -> float:
        times = []
        for _ in range(9):
            began = time.perf_counter()
            action()
            times.append(time.perf_counter() - began)
        return 1e3 * float(np.median(times))

    state = State(0, {"weight": torch.zeros(1000)}, {})
    print("\n   losses   a save, ms   record.json, bytes   all losses in the record, ms")
    rows = {}
    for count in (100, 1_000, 10_000, 100_000, 990_000):
        run = make_run(f"lora-{count:012x}", "lora", {"steps": 1_000_000}, "base", 10)
        run.losses = np.random.default_rng(0).random(count).tolist()
        store = RunStore(run.id, tmp_path)
        store.save(state, run)

        def save(run=run, store=store) -> None:
            run.losses += [0.123456789] * 100
            state.step = len(run.losses)
            store.save(state, run)

        rows[count] = median_ms(save)
        whole = median_ms(lambda run=run: write_text(tmp_path / "whole.json", run.to_json()))
        size = (store.folder / "record.json").stat().st_size
        print(f"{count:>9,} {rows[count]:12.1f} {size:20,} {whole:30.1f}")
        assert len(RunStore(run.id, tmp_path).record().losses) == count + 900
    assert rows[990_000] < 3 * rows[100]  # the disk's own times scatter; a million losses in the record take 100 times


@pytest.mark.parametrize(
    "settings",
    [{}, {"validation": 2, "ema": 0.9, "sample_every": 20, "save_every": 20, "train_text_encoder": True}],
    ids=["plain", "everything"],
)
def test_ten_trainings_leave_little_memory(models, run_node, settings):
    """Each has other pictures, so that caches by content get new entries."""
    from bespoke.nodes.bridge.runs.monitor import memory_mb

    before = None
    print("\ntraining      MB   grown by")
    for number in range(-2, TRAININGS + 1):  # the first ones load libraries and allocate arenas
        train(run_node, models, 100 + number, **settings)
        gc.collect()
        now = memory_mb()
        if number == 0:
            before = now
        print(f"{number:8} {now:7.0f} {'' if before is None else f'{now - before:10.1f}'}")
    assert now - before <= MOST_MB
    assert not any(p.grad is not None for p in models[0].model.parameters())
    assert torch.is_grad_enabled()

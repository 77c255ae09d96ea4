"""Jobs in several processes, over gloo on the CPU: the result does not depend on their number, or on one that dies."""

import json
import os
import random
import signal
import socket
import time
from hashlib import sha256
from pathlib import Path

import combined
import jobs
import psutil
import pytest
import torch
from moving import mixed_set
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def forks(comfyui, tmp_path_factory):
    made = jobs.Ranks(comfyui, tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def job(comfyui, run_node):
    made = Path(jobs.export(run_node, jobs.base_model(comfyui), "jobs/many", save_every=5)[0])
    return jobs.copy_of(
        made, "many-fp32", dtype="fp32"
    )  # rounded to fp16, a LoRA differs by 1e-5 wherever it differs at all


@pytest.fixture(scope="module")
def whole(forks, job):
    """The job trained by one and by two processes without an interruption: {count: folder}."""
    return {count: forks.train(jobs.copy_of(job, f"whole-{count}"), count) for count in (1, 2)}


def curves_differ(one, other) -> float:
    a, b = (torch.tensor(jobs.losses(job), dtype=torch.float64) for job in (one, other))
    assert len(a) == len(b) == 50
    return float(((a - b).abs() / a.abs()).max())


# --- the same training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_the_number_of_processes_changes_nothing(forks, job, whole, count):
    other = whole[2] if count == 2 else forks.train(jobs.copy_of(job, f"adamw-{count}"), count)
    curve, lora = curves_differ(whole[1], other), jobs.distance(jobs.result(whole[1])[0], jobs.result(other)[0])
    print(f"\nAdamW, {count} processes: losses differ by {curve:.1e}, the LoRA by {lora:.1e}")
    assert curve < 1e-4
    assert lora < 1e-2
    held = [[line["loss"] for line in jobs.events(one, "validation")] for one in (whole[1], other)]
    assert len(held[0]) > 3
    assert held[1] == pytest.approx(held[0], rel=1e-4)
    assert jobs.result(other)[1]["bespoke.run"] == jobs.result(whole[1])[1]["bespoke.run"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_with_sgd_and_everything_else_switched_on_too(forks, job, count):
    """SGD, unlike Adam, does not amplify rounding errors. With 3 processes the shares of a batch of 4 are uneven."""
    settings = dict(
        optimizer="SGD",
        learning_rate=0.2,
        gradient_accumulation=3,
        caption_dropout=0.3,
        noise_offset=0.1,
        multires_noise=0.3,
        ip_noise_gamma=0.1,
        ema=0.9,
        loss_weighting="min-SNR",
        loss_type="huber",
    )
    one, many = (forks.train(jobs.copy_of(job, f"sgd-{count}-{n}", **settings), n) for n in (1, count))
    curve, lora = curves_differ(one, many), jobs.distance(jobs.result(one)[0], jobs.result(many)[0])
    print(f"\nSGD, {count} processes: losses differ by {curve:.1e}, the LoRA by {lora:.1e}")
    assert curve < 1e-4
    assert lora < 1e-5


@pytest.mark.parametrize("optimizer", ["Prodigy (built in)", "schedule-free AdamW", "Muon"])
def test_two_processes_step_as_one_with_the_other_optimisers(forks, job, optimizer):
    """Each process estimates the rate from the same sum of gradients; schedule-free weights are scored by both.

    Muon makes its matrices orthogonal in bfloat16, which amplifies rounding errors.
    """
    within = 1e-3 if optimizer == "Muon" else 1e-4
    settings = dict(optimizer=optimizer, steps=12)
    name = optimizer.split()[0].lower()
    one, two = (forks.train(jobs.copy_of(job, f"{name}-{n}", **settings), n) for n in (1, 2))
    assert jobs.losses(two) == pytest.approx(jobs.losses(one), rel=within)
    held = [[line["loss"] for line in jobs.events(each, "validation")] for each in (one, two)]
    assert held[1] == pytest.approx(held[0], rel=within)
    assert jobs.result(two)[1]["ss_optimizer"] == optimizer


def test_a_process_without_a_picture_waits_for_nobody(forks, job):
    """Three processes and two pictures in each batch."""
    one, many = (
        forks.train(jobs.copy_of(job, f"few-{n}", optimizer="SGD", learning_rate=0.2, batch_size=2, steps=10), n)
        for n in (1, 3)
    )
    assert jobs.losses(many) == pytest.approx(jobs.losses(one), rel=1e-4)
    assert jobs.distance(jobs.result(one)[0], jobs.result(many)[0]) < 1e-5


def test_combined_sets_are_drawn_alike_in_two_processes(forks, comfyui, run_node):
    """Weights, sizes and several captions a picture, from a job folder, against the node's own training: the same
    pictures, captions, masks and noises at every step.
    """
    models = jobs.base_model(comfyui)
    given = dict(images=combined.combined_set(), validation_images=None, **combined.TRAIN)
    made = Path(jobs.export(run_node, models, "jobs/combined", **given)[0])
    one, two = (forks.train(jobs.copy_of(made, f"combined-{count}", dtype="fp32"), count) for count in (1, 2))
    wires = dict(model=models[0], clip=models[1], vae=models[2], keep="last", resume=False)
    _, _, loss, *_ = run_node("BespokeTrainLora", **given | wires)
    assert jobs.losses(one) == pytest.approx(loss["loss"], rel=1e-5)
    assert jobs.losses(two) == pytest.approx(loss["loss"], rel=1e-4)
    assert jobs.distance(jobs.result(one)[0], jobs.result(two)[0]) < 1e-5


def test_clips_and_stills_are_drawn_alike_in_two_processes(forks, comfyui, run_node):
    """Of a small Wan, against the node's own training: frames, masks, noises and samples of a mixed set. Two trainings
    in two processes end in the same bits, and one process in those of the node."""
    models = jobs.video_model(comfyui)
    given = dict(
        images=mixed_set(masks=True), validation_images=None, steps=6, batch_size=2, noise_offset=0.1, seed=4,
        multires_noise=0.3, lr_schedule="constant", optimizer="SGD", learning_rate=0.05, save_every=0,
    )  # fmt: skip
    made = Path(jobs.export(run_node, models, "jobs/clips", **given)[0])
    one, two, again = (
        forks.train(jobs.copy_of(made, f"clips-{name}", dtype="fp32"), count)
        for name, count in (("one", 1), ("two", 2), ("again", 2))
    )
    wires = dict(model=models[0], clip=models[1], vae=models[2], keep="last", resume=False)
    _, _, loss, *_ = run_node("BespokeTrainLora", **jobs.SETTINGS | given | wires)
    assert jobs.losses(one) == loss["loss"]
    assert jobs.losses(two) == pytest.approx(loss["loss"], rel=1e-4)
    assert jobs.distance(jobs.result(one)[0], jobs.result(two)[0]) < 1e-5
    assert jobs.losses(two) == jobs.losses(again)
    assert jobs.result(one)[1]["modelspec.resolution"] == "64x64"
    assert all(torch.equal(value, jobs.result(again)[0][key]) for key, value in jobs.result(two)[0].items())


@pytest.mark.slow
def test_a_small_set_in_rotation_stops_at_the_same_step(forks, comfyui, run_node):
    """Cross-validation of five pictures: two trainings leave two pictures out each, and a last one uses all."""
    small = Path(
        jobs.export(
            run_node,
            jobs.base_model(comfyui),
            "jobs/rotating",
            validation_images=None,
            validation=2,
            keep="best",
            optimizer="SGD",
            learning_rate=0.05,
            steps=12,
        )[0]
    )
    one, many = (forks.train(jobs.copy_of(small, f"rotating-{count}", dtype="fp32"), count) for count in (1, 2))
    steps = [[line["step"] for line in jobs.events(run, "step")] for run in (one, many)]
    assert len(jobs.events(one, "start")) == 3
    assert steps[0] == steps[1]
    held = [[line["loss"] for line in jobs.events(run, "validation")] for run in (one, many)]
    assert held[1] == pytest.approx(held[0], rel=1e-4)
    assert jobs.distance(jobs.result(one)[0], jobs.result(many)[0]) < 1e-5


def test_only_the_adapters_gradients_travel(whole):
    trained = sum(value.numel() for key, value in jobs.result(whole[2])[0].items() if not key.endswith("alpha"))
    steps = jobs.events(whole[2], "step")
    assert len(steps) == 50
    assert {line["gradients_bytes"] for line in steps} == {4 * trained}
    # The loss, the stop request, and the sums of the validation losses where a validation came before, with the two
    # sums of the leak where that was measured.
    assert {line["other_bytes"] for line in steps[1:]} <= {4 + 8, 4 + 8 + 3 * 8, 4 + 8 + 3 * 8 + 2 * 8}


def test_a_sharded_base_learns_the_same(forks, job):
    """FSDP2: each of two processes holds one half of every block."""
    settings = dict(optimizer="SGD", learning_rate=0.2, steps=8)
    plain = forks.train(jobs.copy_of(job, "plain", **settings), 2)
    spread = forks.train(jobs.copy_of(job, "spread", gradient_checkpointing=True, **settings), 2, ["--shard"])
    assert jobs.losses(spread) == pytest.approx(jobs.losses(plain), rel=1e-6)
    assert jobs.distance(jobs.result(plain)[0], jobs.result(spread)[0]) < 1e-6
    (sharded,) = jobs.events(spread, "sharded")
    assert sharded["held_bytes"] < 0.75 * sharded["base_bytes"]


# --- stopping and going on ------------------------------------------------------------------------------------------


def test_the_world_may_change_in_mid_run(forks, job, whole):
    """Two processes, one of which gets Ctrl-C; then one process, stopped; then three to the end."""
    run = jobs.copy_of(job, "changing")
    for count, until in ((2, 12), (1, 30)):
        pids = forks.start(*[run] * count)
        jobs.wait_for(lambda until=until: [line for line in jobs.events(run, "step") if line["step"] >= until])
        os.kill(pids[-1], signal.SIGINT)
        statuses, said = forks.ended()
        assert statuses == [130] * count, "\n".join(said)
        assert all("stopped; the state is kept" in text for text in said)
        assert not (run / "result").exists()
    forks.train(run, 3)
    steps = [line["step"] for line in jobs.events(run, "step")]
    assert steps == list(range(1, 51))  # each once
    assert curves_differ(whole[1], run) < 1e-4
    assert jobs.distance(jobs.result(whole[1])[0], jobs.result(run)[0]) < 1e-2


def test_finish_ends_it_early_for_all(forks, job):
    run = jobs.copy_of(job, "finished-early", steps=5000)
    forks.start(run, run)
    jobs.wait_for(lambda: len(jobs.events(run, "step")) > 3)
    (run / "finish").touch()
    statuses, said = forks.ended()
    assert statuses == [0, 0], "\n".join(said)
    assert jobs.events(run, "end")[-1]["state"] == "kept"
    assert 3 < int(jobs.result(run)[1]["ss_steps"]) < 5000


def test_a_loss_that_is_no_number_ends_all_at_the_same_step(forks, job):
    """Latents so large that their square overflows in float32."""
    run = jobs.copy_of(job, "exploding")
    tensors, _ = jobs.read(run / "material.safetensors")
    save_file(
        {key: value * 1e25 if key == "latent/0" else value for key, value in tensors.items()},
        run / "material.safetensors",
    )
    text, old, new = (
        (run / "job.toml").read_text(),
        *(sha256((one / "material.safetensors").read_bytes()).hexdigest() for one in (job, run)),
    )
    (run / "job.toml").write_text(text.replace(old, new))
    forks.start(run, run)
    statuses, said = forks.ended()
    assert statuses == [3, 3], "\n".join(said)
    assert all("the loss at step" in text and "learned before it" in text for text in said), said
    assert jobs.events(run, "end")[-1]["state"] == "failed"
    assert not (run / "result").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_process_dies_the_others_say_so_and_the_next_start_goes_on(forks, job, whole, rank):
    run = jobs.copy_of(job, f"dead-{rank}")
    pids = forks.start(run, run)
    jobs.wait_for(lambda: [line for line in jobs.events(run, "step") if line["step"] >= 17])
    os.kill(pids[rank], signal.SIGKILL)
    statuses, said = forks.ended()
    assert statuses[rank] == -signal.SIGKILL
    assert statuses[1 - rank] == 4, said[1 - rank]
    assert "another process ended or did not answer" in said[1 - rank]
    forks.train(run, 2)
    last, first = jobs.step_lost(run)
    assert last - first <= 5  # at most the steps since the last save
    assert jobs.losses(run) == jobs.losses(whole[2])
    assert all(torch.equal(value, jobs.result(run)[0][key]) for key, value in jobs.result(whole[2])[0].items())


def test_when_a_process_of_a_spread_base_dies_the_other_says_so(forks, job):
    """With a sharded base, the process waits in the model's own collectives."""
    run = jobs.copy_of(job, "dead-spread", steps=500)
    pids = forks.start(run, run, options=["--shard"])
    jobs.wait_for(lambda: [line for line in jobs.events(run, "step") if line["step"] >= 3])
    os.kill(pids[1], signal.SIGKILL)
    statuses, said = forks.ended()
    assert statuses == [4, -signal.SIGKILL], said[0]
    assert "another process ended or did not answer" in said[0]


def test_a_place_that_cannot_be_written_ends_all_and_is_named(forks, job):
    """As on a full disk: process 0 alone writes, and the others must not wait for it."""
    run = jobs.copy_of(job, "unwritable")
    (run / "log.jsonl").mkdir()
    forks.start(run, run)
    statuses, said = forks.ended()
    assert statuses == [3, 4], "\n".join(said)
    assert "log.jsonl" in said[0]
    assert "Traceback" not in said[0]


def killed_at_random(comfyui, job, whole, name, draw) -> tuple[int, int, int]:
    """Kill one worker of a run under torchrun, which then ends well.

    Returns (the worker, the last step before it was killed, the step that the run resumed from).
    """
    run = jobs.copy_of(job, name)
    at, victim = draw.randrange(8, 32), draw.randrange(2)
    process = jobs.torchrun(run, comfyui, 2, "--max-restarts", "3")
    try:
        jobs.wait_for(
            lambda: process.poll() is not None or [line for line in jobs.events(run, "step") if line["step"] >= at]
        )
        assert process.poll() is None, process.communicate()[0]
        workers = sorted(psutil.Process(process.pid).children(), key=lambda one: int(one.environ()["RANK"]))
        workers[victim].kill()
        text, _ = process.communicate(timeout=300)
    finally:
        for left in [*psutil.Process(process.pid).children(), process] if process.poll() is None else []:
            left.kill()
    assert process.returncode == 0, text
    last, first = jobs.step_lost(run)
    assert last - first <= 5
    assert jobs.losses(run) == jobs.losses(whole[2])
    assert all(torch.equal(value, jobs.result(run)[0][key]) for key, value in jobs.result(whole[2])[0].items())
    return victim, last, first


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 10])
def test_torchrun_starts_a_killed_worker_again(comfyui, job, whole, kills):
    draw = random.Random(kills)
    table = [killed_at_random(comfyui, job, whole, f"killed-{kills}-{number}", draw) for number in range(kills)]
    print(f"\n{'worker':>7} {'killed after step':>18} {'gone on from':>13}")
    for victim, last, first in table:
        print(f"{victim:7} {last:18} {first:13}")


# --- bad input ------------------------------------------------------------------------------------------------------


def test_processes_that_disagree_on_the_job_all_say_so(forks, job):
    one, other = jobs.copy_of(job, "mine"), jobs.copy_of(job, "theirs", rank=8)
    forks.start(one, other)
    statuses, said = forks.ended()
    assert statuses == [2, 2]
    assert all("the processes disagree on the job" in text and "process 1" in text for text in said)
    assert not (one / "runs").exists()


def test_processes_with_other_options_all_say_so(forks, job):
    forks.start(job, job, last=["--shard"])
    statuses, said = forks.ended()
    assert statuses == [2, 2]
    assert all(
        "process 0 with cpu, process 1 with cpu and --shard; give every machine the same command" in text
        for text in said
    )


def test_a_job_that_is_missing_for_one_process_is_an_error_in_all(forks, job, tmp_path):
    forks.start(job, tmp_path / "moved")
    statuses, said = forks.ended()
    assert statuses == [2, 2]
    assert all("process 1: " in text and "holds no job.toml" in text for text in said)


def test_a_base_that_is_missing_is_an_error_in_all(forks, comfyui, job):
    here = comfyui / "models" / "diffusion_models" / jobs.BASE
    here.rename(here.with_suffix(".away"))
    try:
        forks.start(job, job)
        statuses, said = forks.ended()
    finally:
        here.with_suffix(".away").rename(here)
    assert statuses == [2, 2]
    assert all(f"the job's model is {jobs.BASE}, which is not here" in text for text in said)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"train_text_encoder": True}, "need the clip, which was not exported"),
        ({"sample_every": 5}, "need the vae, which was not exported"),
        ({"sample_prompt": "a red circle"}, "the prompt 'a red circle' was not encoded"),
        ({"optimizer": 3}, "optimizer is 3"),
        ({"steps": "many"}, "settings"),
        ({"dtype": "fp12"}, "dtype in [result] is 'fp12'"),
        ({"key_format": "own"}, "key_format in [result] is 'own'"),
    ],
)
def test_edited_settings_that_cannot_be_are_refused(forks, job, settings, says):
    forks.start(jobs.copy_of(job, f"edited-{next(iter(settings))}", **settings))
    statuses, said = forks.ended()
    assert statuses == [2], said
    assert says in said[0]
    assert "Traceback" not in said[0]


def test_a_port_in_use_is_said_at_once_and_others_wait_no_longer_than_told(forks, job):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        began = time.monotonic()
        forks.start(job, job, options=["--timeout", "4"], port=taken.getsockname()[1])
        statuses, said = forks.ended()
    assert statuses == [2, 2], "\n".join(said)
    assert "is in use by another program" in said[0]
    assert "did not find one another" in said[1]
    assert time.monotonic() - began < 60


def test_a_process_that_never_comes_is_waited_for_as_long_as_told(forks, job):
    began = time.monotonic()
    forks.start(job, options=["--timeout", "3"], port=jobs.free_port(), env={"WORLD_SIZE": "2"})
    statuses, said = forks.ended()
    assert statuses == [2]
    assert "within 3 s" in said[0]
    assert time.monotonic() - began < 40


def test_restarts_on_several_machines_need_torchs_own_switch(forks, job):
    env = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    forks.start(job, job, env=env)
    statuses, said = forks.ended()
    assert statuses == [2, 2]
    assert all("set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in text for text in said)


def test_every_line_of_the_log_is_json_with_a_time_and_an_event(whole):
    lines = [json.loads(line) for line in (whole[1] / "log.jsonl").read_text().splitlines()]
    assert {line["event"] for line in lines} == {"start", "step", "validation", "end", "result"}
    assert all(line["time"] > 1e9 for line in lines)
    assert (whole[1] / lines[-1]["file"]).is_file()


def test_a_lora_on_sd15_sends_six_megabytes_a_step(comfyui):
    """Rank 16 in float32 on the cross-attention of Stable Diffusion 1.5, counted on its layers on the meta device."""
    import comfy.model_base
    import comfy.supported_models
    from bespoke.nodes.bridge.models import target_layers

    layout = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "channel_mult": [1, 2, 4, 4],
        "use_linear_in_transformer": False,
        "context_dim": 768,
        "num_heads": 8,
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "legacy": False,
        "adm_in_channels": None,
    }
    base = comfy.model_base.BaseModel(comfy.supported_models.SD15(layout), device=torch.device("meta"))
    assert sum(p.numel() for p in base.diffusion_model.parameters()) == 859_520_964
    layers = target_layers(base.diffusion_model, "cross-attention")
    numbers = sum(16 * sum(layer.weight.shape) for layer in layers.values())
    assert len(layers) == 64
    assert numbers == 1_591_296
    assert 4 * numbers == 6_365_184

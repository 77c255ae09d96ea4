"""Job folders: what they contain, what is refused, and that one process writes the same file as the node."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import families
import jobs
import pytest
import ranks
import tiny
import torch
from bespoke.nodes.bridge.runs.samples import SamplerSettings
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.bridge.trainer import Models
from bespoke.nodes.jobs import wire
from bespoke.nodes.jobs.job import ExportedModel, JobContents, read_job, write_job
from bespoke.nodes.jobs.lock import lock_folder
from bespoke.nodes.jobs.sharding import shard_blocks, supports_resharding
from bespoke.nodes.jobs.source import find_files, load_source, source_of
from bespoke.nodes.jobs.toml import _read_lines, read_toml, write_toml
from bespoke.nodes.lora.training.request import ADDED as ADDED_OF_LORA
from bespoke.nodes.lora.training.request import LoraData, LoraRequest
from bespoke.nodes.lora.training.technique import encode_dataset
from bespoke.training.config import ADDED, TrainConfig
from bespoke.training.errors import InputError
from helpers import sprite_set


@pytest.fixture(scope="module")
def models(comfyui):
    return jobs.base_model(comfyui)


@pytest.fixture(scope="module")
def job(comfyui, models, run_node):
    return Path(jobs.export(run_node, models, "jobs/teal")[0])


LATER_SETTINGS = dict(
    adapter="LoKr", lokr_factor=4, rslora=True, rank_dropout=0.1, module_dropout=0.2, max_norm=1.5, preserve_weight=0.7,
    preserve="a dog\n a 'cat' \"x\"\n\ttab \\ back é\r\n[table]\n# c", min_timestep=0.25, max_timestep=0.75,
    loss_type="smooth l1", huber_c=0.3, multires_noise=0.3, ip_noise_gamma=0.1, compile=True, score_pictures="off",
    training_adapter_strength=0.5, conv_rank=3, stop="when nothing changes", source_encoding="reference latent",
)  # fmt: skip


def test_a_job_has_every_later_setting_as_it_was_given(models, run_node):
    """Those that version 0.1 lacks, each at another value than its default.

    conv_rank is not for this model, and source_encoding not for a set without second pictures.
    """
    assert set(LATER_SETTINGS) == {*ADDED, *ADDED_OF_LORA}
    given = {name: value for name, value in LATER_SETTINGS.items() if name not in ("conv_rank", "source_encoding")}
    folder, _ = jobs.export(run_node, models, "jobs/later", **given)
    settings = read_job(Path(folder)).settings
    assert {name: settings.get(name) for name in given} == given


def test_the_node_and_the_command_give_the_same_file(comfyui, models, run_node, job):
    """Every tensor bit for bit, and all metadata but the date."""
    images, validation = jobs.pictures()
    given = dict(model=models[0], clip=models[1], vae=models[2], images=images, validation_images=validation)
    with one_thread():
        _, lora, _, run, *_ = run_node("BespokeTrainLora", resume=False, **given | jobs.SETTINGS)
        name, *_ = run_node("BespokeSaveLora", lora=lora, run=run, filename_prefix="jobs/teal")
    theirs, said = jobs.read(comfyui / "models" / "loras" / name)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(job), "--base-directory", str(comfyui)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COMMAND": str(ranks.COMMAND)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "server modules: []" in done.stdout  # nothing of the server is imported
    ours, meta = jobs.result(job)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {k: v for k, v in meta.items() if k != "modelspec.date"} == {
        k: v for k, v in said.items() if k != "modelspec.date"
    }
    assert jobs.losses(job) == run.losses
    assert [line["step"] for line in jobs.events(job, "step")] == list(range(1, 51))
    assert jobs.events(job, "end")[-1]["state"] == "finished"
    assert jobs.events(job, "step")[0]["gradients_bytes"] == 0  # one process sends nothing


WATCHED = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("command", os.environ["COMMAND"])
command = importlib.util.module_from_spec(spec)
spec.loader.exec_module(command)
status = command.main(sys.argv[1:])
print("server modules:", sorted({"server", "nodes", "execution", "aiohttp"} & set(sys.modules)), flush=True)
os._exit(status)
"""


def test_a_job_is_complete_and_has_no_path_of_this_machine(comfyui, job):
    said = job.joinpath("job.toml").read_text() + job.joinpath("material.json").read_text()
    assert str(comfyui) not in said
    assert sorted(path.name for path in job.iterdir() if path.is_file() and path.name not in ("log.jsonl", "lock")) == [
        "graph.json",
        "job.toml",
        "material.json",
        "material.safetensors",
    ]
    read = read_job(job)
    assert read.settings["rank"] == 4
    assert read.sources["model"].files == (jobs.BASE,)
    assert set(read.sources) == {"model"}  # not clip and vae: pictures and prompts are encoded
    assert read.material["counts"] == [5, 3, 0]
    images, validation = jobs.pictures()
    kept, given = read.dataset(TrainConfig(1, 1e-3, 1, 0)).pictures, [*images.items, *validation.items]
    assert [(item.name, item.caption, item.pixels.shape[:2]) for item in kept.items] == [
        (i.name, i.caption, i.pixels.shape[:2]) for i in given
    ]


def test_a_folder_that_is_taken_gets_a_number(run_node, models, job):
    before = job.joinpath("job.toml").read_bytes()
    again, report, *_ = jobs.export(run_node, models, "jobs/teal", steps=3)
    assert again == f"{job}_00002"
    assert "SHA-256" in report
    assert "torchrun" in report
    assert job.joinpath("job.toml").read_bytes() == before
    shutil.rmtree(again)


def test_the_blank_picture_of_an_inpainting_checkpoint_is_exported(comfyui, tmp_path):
    """The model inputs of each picture are the same in the job and in the node."""
    request = LoraRequest(TrainConfig(1, 1e-3, 1, 0))
    model, clip, vae = families.made("inpainting")
    images = sprite_set(2, 3, side=64, colour="teal")
    material = encode_dataset(Models(model, clip, vae), LoraData(images), request)
    source = source_of(jobs.base_model(comfyui)[0], "model")
    exported = {"model": ExportedModel(source, {}, {})}
    write_job(tmp_path / "job", JobContents("lora", request.settings(), material, exported, {}, SamplerSettings()))
    back = read_job(tmp_path / "job").dataset(request.train)
    for index in range(3):
        ours, theirs = back.pictures.model_inputs(index), material.pictures.model_inputs(index)
        assert ours.keys() == theirs.keys() >= {"concat_latent_image", "concat_mask"}
        assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])) for key in ours)


def test_changes_of_other_nodes_are_applied_again(comfyui, models, run_node):
    """Patches and a shifted noise schedule: the loaded model has the exported weights and sigmas, bit for bit."""
    model = models[0]
    layers = {name: shape for name, shape in tiny.linear_layers(model, "attn").items() if "qkv" in name}
    import comfy.sd

    with torch.inference_mode():
        patched, _ = comfy.sd.load_lora_for_models(model, None, tiny.random_lora(layers), 0.7, 0.0)
    (shifted,) = run_node("ModelSamplingSD3", model=patched, shift=5.0)
    changes, tensors = wire.export_changes(shifted, "model")
    changes = json.loads(json.dumps(changes))  # as read from the file
    source = source_of(shifted, "model")
    with torch.inference_mode():
        fresh = wire.apply_changes(load_source(source, find_files(source, "model"), "model"), changes, tensors, "model")
    assert torch.equal(
        fresh.get_model_object("model_sampling").sigmas, shifted.get_model_object("model_sampling").sigmas
    )
    assert fresh.get_model_object("model_sampling").shift == 5.0
    changes["objects"]["model_sampling"]["classes"] = ["ModelSamplingOfNextYear"]
    with pytest.raises(
        InputError, match="this ComfyUI cannot make what the job changes on the model .*ModelSamplingOfNextYear"
    ):
        wire.apply_changes(model, changes, tensors, "model")
    with torch.inference_mode():
        weights = []
        import comfy.model_management

        for one in (model, shifted, fresh):
            comfy.model_management.load_models_gpu([one])
            weights.append({name: one.model.diffusion_model.get_parameter(f"{name}.weight").clone() for name in layers})
    plain, theirs, ours = weights
    assert len(layers) > 2
    assert all(torch.equal(theirs[name], ours[name]) and not torch.equal(plain[name], ours[name]) for name in layers)


def refused(run_node, models, says, **changes):
    with pytest.raises(InputError, match=f"Bespoke Export LoRA Job: {says}"):
        jobs.export(run_node, models, "jobs/refused", **changes)


def test_what_cannot_be_exported_is_refused_with_the_reason(comfyui, models, run_node):
    model = models[0]
    refused(run_node, models, "the model's loader did not record its file", model=tiny.sd3()[0])
    refused(run_node, models, "the clip's loader did not record its file", train_text_encoder=True)
    refused(run_node, models, "the vae's loader did not record its file", sample_every=5)
    beside = model.clone()
    beside.set_model_attn1_patch(lambda *a: a)
    refused(run_node, models, "the model on the wire carries a function of another node", model=beside)
    wrapped = model.clone()
    wrapped.add_wrapper("diffusion_model", lambda *a: None)
    refused(run_node, models, "the model on the wire carries a wrapper of another node", model=wrapped)
    (injected,) = run_node(
        "BespokeInjectLora", model=model, lora=tiny_lora(model), lora_name="none", strength_model=1.0, mode="bypass"
    )[:1]
    refused(run_node, models, "the model on the wire carries a path beside its weights", model=injected)
    refused(run_node, models, "no linear layer matches", targets="custom", custom_targets="nothing*")
    refused(run_node, models, "the name '../x' leads out of", folder="../x")
    assert not (comfyui / "output" / "jobs" / "refused").exists()


def tiny_lora(model):
    return tiny.random_lora({n: s for n, s in tiny.linear_layers(model, "attn").items() if "proj" in n})


# --- bad input ------------------------------------------------------------------------------------------------------


def test_two_commands_do_not_write_into_one_folder(tmp_path):
    with lock_folder(tmp_path), pytest.raises(InputError, match="another command trains .* now; wait until it ends"):
        lock_folder(tmp_path)
    lock_folder(tmp_path).close()  # free again


def test_a_folder_that_is_no_job_or_was_changed(tmp_path, job):
    with pytest.raises(InputError, match=r"holds no job\.toml, so it is no job"):
        read_job(tmp_path)
    lacking = jobs.copy_of(job, "lacking")
    (lacking / "material.safetensors").unlink()
    with pytest.raises(InputError, match="lacks material.safetensors"):
        read_job(lacking)
    changed = jobs.copy_of(job, "changed")
    with (changed / "material.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InputError, match="was changed or cut off"):
        read_job(changed)
    older = jobs.copy_of(job, "older", format=99)
    with pytest.raises(InputError, match="has the format 99"):
        read_job(older)
    for text in ("[job", "x = 1", "[job]\nformat = 1"):
        (older / "job.toml").write_text(text)
        with pytest.raises(InputError, match=r"job\.toml"):
            read_job(older)


def test_a_base_that_is_not_here_or_is_another(comfyui, job, tmp_path):
    read = read_job(job)
    source, here = read.sources["model"], comfyui / "models" / "diffusion_models" / jobs.BASE
    away = tmp_path / jobs.BASE
    here.rename(away)
    try:
        with pytest.raises(InputError, match="which is not here; put it into one of"):
            find_files(source, "model")
        assert find_files(source, "model", [tmp_path]) == [away]
        data = bytearray(away.read_bytes())
        data[-1] ^= 1
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / jobs.BASE).write_bytes(data)
        with pytest.raises(InputError, match="is another file than the job's model: its SHA-256 is"):
            find_files(source, "model", [tmp_path / "other"])
        assert find_files(source, "model", [tmp_path / "other", tmp_path]) == [
            away
        ]  # the right file is in the second folder
    finally:
        away.rename(here)


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_go_through_toml_and_back():
    tables = {
        "a": {
            "text": 'quote " back \\ tab \t ünï 🐈 \u2028 \x85 \x7f\x01',
            "float": 1e-05,
            "whole": 2**63 + 1,
            "yes": True,
            "list": ["a", "b\n"],
        },
        "b": {"empty": "", "list": [], "nothing": None},
    }
    text = write_toml(tables, "a comment\nof two lines")
    wanted = {**tables, "b": {"empty": "", "list": []}}
    assert _read_lines(text) == wanted
    if sys.version_info >= (3, 11):
        assert read_toml(text) == wanted
    with pytest.raises(ValueError, match="cannot be written"):
        write_toml({"a": {"x": float("nan")}})
    for bad in ("x = 1", "[a]\nx", "[a]\nx = {"):
        with pytest.raises(ValueError):
            _read_lines(bad)


# --- with a checkpoint's text encoder and VAE -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(comfyui, small_checkpoint, run_node):
    shutil.copy(small_checkpoint, comfyui / "models" / "checkpoints" / small_checkpoint.name)
    return run_node("CheckpointLoaderSimple", ckpt_name=small_checkpoint.name)


@contextlib.contextmanager
def one_thread():
    """Sum in the order of a process with one thread, so that results are equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_text_encoder_learns_and_samples_are_drawn_by_the_command_as_by_the_node(
    comfyui, checkpoint, run_node, tmp_path
):
    model, clip, vae = checkpoint
    (skipping,) = run_node("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-2)
    given = dict(
        model=model,
        clip=skipping,
        vae=vae,
        images=sprite_set(2, 4, side=64, colour="teal"),
        steps=4,
        batch_size=2,
        rank=2,
        alpha=2.0,
        seed=3,
        precision="fp32",
        keep="last",
        train_text_encoder=True,
        text_encoder_lr=1e-4,
        sample_every=2,
    )
    with one_thread():
        _, lora, _, run, *_ = run_node("BespokeTrainLora", resume=False, **given)
        name, *_ = run_node("BespokeSaveLora", lora=lora, run=run, filename_prefix="jobs/text")
        folder, report = run_node("BespokeExportLoraJob", folder="jobs/text", **given)
    assert "- clip: " in report
    assert "- vae: " in report
    forks = jobs.Ranks(comfyui, tmp_path)
    try:
        job = forks.train(Path(folder), 1)
        made, meta = jobs.result(job)
        two = forks.train(jobs.copy_of(job, "text-2"), 2)
    finally:
        forks.close()
    theirs, said = jobs.read(comfyui / "models" / "loras" / name)
    assert made.keys() == theirs.keys()
    assert any(key.startswith("lora_te_") for key in made)
    assert all(torch.equal(made[key], theirs[key]) for key in theirs)
    assert {k: v for k, v in meta.items() if k != "modelspec.date"} == {
        k: v for k, v in said.items() if k != "modelspec.date"
    }
    drawn = {path.name: path.read_bytes() for path in (job / "runs").rglob("samples/*.png")}
    assert sorted(drawn) == ["000000.png", "000002.png", "000004.png"]
    assert drawn == {path.name: path.read_bytes() for path in RunStore(run.id).folder.rglob("samples/*.png")}
    assert jobs.distance(made, jobs.result(two)[0]) < 1e-2


# --- textual inversion ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_word_is_learned_by_the_command_as_by_the_node(comfyui, checkpoint, run_node, count, tmp_path):
    model, clip, vae = checkpoint
    given = dict(
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(2, 4, side=64, colour="teal"),
        name=f"teal-{count}",
        init_text="green",
        steps=6,
        batch_size=2,
        seed=3,
        precision="fp32",
        keep="last",
        vectors=2,
    )
    with one_thread():
        _, embedding, _, _, run, _ = run_node("BespokeTrainTextualInversion", resume=False, **given)
        run_node("BespokeSaveEmbedding", embedding=embedding, run=run, name=f"teal-{count}", overwrite=True)
    folder, report = run_node("BespokeExportTextualInversionJob", folder=f"jobs/word-{count}", **given)
    assert "clip: " in report
    forks = jobs.Ranks(comfyui, tmp_path)
    try:
        made, meta = jobs.result(forks.train(Path(folder), count))
    finally:
        forks.close()
    theirs, said = jobs.read(comfyui / "models" / "embeddings" / f"teal-{count}.safetensors")
    if count == 1:
        assert all(torch.equal(made[key], theirs[key]) for key in theirs)
        assert {k: v for k, v in meta.items() if k != "modelspec.date"} == {
            k: v for k, v in said.items() if k != "modelspec.date"
        }
    else:
        assert jobs.distance(theirs, made) < 1e-2


def test_a_sharded_block_is_resharded_after_its_forward_pass():
    """Otherwise every device would hold the whole base at the end of a forward pass."""
    import torch.distributed as dist

    assert supports_resharding()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        blocks = [torch.nn.Linear(8, 8).requires_grad_(False) for _ in range(3)]
        shard_blocks(blocks, torch.device("cpu"))
        for graph in (True, False):
            x = torch.ones(2, 8, requires_grad=True)
            with torch.set_grad_enabled(graph):
                y = blocks[2](blocks[1](blocks[0](x)))
            assert all(hasattr(block.weight, "to_local") for block in blocks)
            if graph:
                y.sum().backward()
                assert x.grad is not None
                assert all(hasattr(block.weight, "to_local") for block in blocks)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_a_word_is_learned_on_a_sharded_base(comfyui, checkpoint, run_node, tmp_path):
    model, clip, vae = checkpoint
    given = dict(
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(2, 4, side=64, colour="teal"),
        name="teal-spread",
        init_text="green",
        steps=2,
        batch_size=2,
        seed=3,
        precision="fp32",
        keep="last",
    )
    folder, _ = run_node("BespokeExportTextualInversionJob", folder="jobs/word-spread", **given)
    forks = jobs.Ranks(comfyui, tmp_path)
    try:
        plain = forks.train(jobs.copy_of(Path(folder), "word-plain"), 2)
        spread = forks.train(Path(folder), 2, ["--shard"])
    finally:
        forks.close()
    assert jobs.losses(spread) == pytest.approx(jobs.losses(plain), rel=1e-5)
    assert jobs.distance(jobs.result(plain)[0], jobs.result(spread)[0]) < 1e-3

"""Interrupting, finishing and resuming a training, the list of runs, and which run a node shows."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
from dataclasses import fields
from pathlib import Path

import comfy.model_management
import comfy.utils
import pytest
import torch
from bespoke.nodes.bridge.runs import routes
from bespoke.nodes.bridge.runs.index import RunIndex
from bespoke.nodes.bridge.runs.loss_file import LOSSES
from bespoke.nodes.bridge.runs.match import NodeRequest, find_run, same_request
from bespoke.nodes.bridge.runs.store import RunStore, request_finish
from bespoke.nodes.bridge.web import RequestRefused
from bespoke.nodes.jobs.techniques import setting_defaults
from bespoke.nodes.lora.training.request import LoraRequest
from bespoke.nodes.textual_inversion.request import InversionRequest
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.record import Run, RunState, summary_of
from bespoke.training.run_identity import NOT_IDENTITY, SETTINGS_0_1, defaults_of
from comfy.patcher_extension import WrappersMP
from helpers import sprite_set
from run_records import changed, make_run
from torch.optim.optimizer import register_optimizer_step_post_hook


def newest() -> Run:
    """The record of the run that was started last."""
    return RunStore(RunIndex().look().runs[0].summary.id).record()


def request(small, seed, **changes):
    model, clip, vae = small
    return (
        dict(
            model=model,
            clip=clip,
            vae=vae,
            images=sprite_set(2, 6, side=64, colour="teal"),
            batch_size=2,
            precision="fp32",
            seed=seed,
        )
        | changes
    )


def test_an_interrupt_keeps_the_lora_and_queueing_again_ends_bit_identical(small, run_node, at_step, comfyui):
    whole = run_node("BespokeTrainLora", **request(small, 21, steps=8, resume=False))
    at_step(3, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node("BespokeTrainLora", **request(small, 21, steps=8, resume=False))
    record = RunStore(whole[3].id).record()
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
    """A second Ctrl-C of the command raises at any moment, also within a step."""
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


def test_finish_returns_the_result_and_more_steps_resume_it(small, run_node, at_step):
    at_step(2, lambda: request_finish(newest().id))
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


def test_fewer_steps_start_a_new_run_and_set_the_longer_one_aside(small, run_node):
    long = run_node("BespokeTrainLora", **request(small, 23, steps=4))
    short = run_node("BespokeTrainLora", **request(small, 23, steps=2))
    assert len(short[2]["loss"]) == 2
    folder = RunStore(long[3].id).folder
    assert list(folder.parent.glob(f"{folder.name}.*/state-000004.safetensors"))


def test_a_broken_state_starts_a_new_run(small, run_node):
    first = run_node("BespokeTrainLora", **request(small, 24, steps=3))
    folder = RunStore(first[3].id).folder
    (folder / "state-000003.safetensors").write_bytes(b"\x00" * 40)
    (folder / "record.json").write_text('{"id": [[[')
    again = run_node("BespokeTrainLora", **request(small, 24, steps=3))
    assert again[2]["loss"] == first[2]["loss"]


def test_saves_during_a_training(small, run_node, comfyui):
    _, _, _, run, *_ = run_node("BespokeTrainLora", **request(small, 25, steps=4, save_every=2))
    folder = comfyui / "models" / "loras" / "bespoke" / "runs"
    assert sorted(p.name for p in folder.glob(f"{run.id}*")) == [f"{run.id}-step00000{n}.safetensors" for n in (2, 4)]


def test_held_out_pictures_are_not_trained_on_and_the_best_is_kept(small, run_node):
    ten = sprite_set(2, 10, side=64, colour="teal")
    args = request(small, 26, images=ten, steps=20, validation=2, learning_rate=1e-2)
    _, lora, _, run, report, _ = run_node("BespokeTrainLora", **args)
    assert run.info.images == 8
    assert [step for step, _ in run.held_out] == [0, 10, 20]
    assert "Held-out loss" in report
    _, last, *_ = run_node("BespokeTrainLora", **args | {"keep": "last"})
    best_step = run.best[0]
    assert all(torch.equal(lora[k], last[k]) for k in lora) == (best_step in (0, 20))  # 0 is no result
    _, _, _, own_set, *_ = run_node(
        "BespokeTrainLora", **request(small, 27, steps=10, validation_images=sprite_set(9, 2, side=64, colour="teal"))
    )
    assert own_set.info.images == 6
    assert len(own_set.held_out) == 2


@pytest.mark.slow
def test_a_word_is_resumed(small, run_node, at_step):
    model, clip, vae = small
    args = dict(
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(3, 4, side=64, colour="pink"),
        name="w",
        init_text="red",
        steps=5,
        batch_size=1,
        precision="fp32",
        seed=3,
    )
    whole = run_node("BespokeTrainTextualInversion", **args, resume=False)
    at_step(2, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node("BespokeTrainTextualInversion", **args, resume=False)
    again = run_node("BespokeTrainTextualInversion", **args)
    assert torch.equal(whole[1]["clip_l"], again[1]["clip_l"])
    assert whole[3]["loss"] == again[3]["loss"]


def test_a_nan_keeps_the_last_good_state(small, run_node):
    """A wrapper on the MODEL gives NaN after some calls, as a broken patch may."""
    calls = 0

    def give_nan(executor, *args, **kwargs):
        nonlocal calls
        calls += 1
        return executor(*args, **kwargs) * (float("nan") if calls > 40 else 1.0)  # the first calls are those of checks

    broken = small[0].clone()
    broken.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "give_nan", give_nan)
    with pytest.raises(
        ValueError, match=r"Bespoke Train LoRA: the loss at step \d+ is nan.*what was learned before it is kept"
    ) as caught:
        run_node("BespokeTrainLora", **request(small, 28, steps=50, model=broken))
    failed_at = int(re.search(r"step (\d+)", str(caught.value))[1])
    assert failed_at > 3
    record = newest()
    assert record.state == "failed"
    state = RunStore(record.id).state()
    assert state.step == len(record.losses) == failed_at - 1
    assert all(torch.isfinite(t).all() for t in state.trained.values())


# --- The list of runs ------------------------------------------------------------------------------------------------


def numbered_run(number: int, **changes) -> Run:
    settings = {
        "steps": 100,
        "seed": number,
        "rank": 8,
        "learning_rate": 5e-05,
        "ema": 0.0,
        "caption_dropout": False,
        "targets": "all attention",
    }
    run = make_run(f"lora-{number:012x}", "lora", settings, "sd15.safetensors", 10, started=1000.0 + number)
    return changed(run, **changes)


def save(*made: Run) -> None:
    for run in made:
        RunStore(run.id).save_record(run)


def ids(**query) -> list[str]:
    """The ids in a response, which has to be strict JSON."""
    answer = json.loads(json.dumps(routes.list_runs(query), allow_nan=False))
    return [run["id"] for run in answer["runs"]]


def record_of_0_1(run: Run) -> Path:
    """Write a record in the form of version 0.1, with all losses and without a summary."""
    names = {
        f"layer {i}": {"comfyui": f"diffusion_model.input_blocks.{i}.attn2.to_q", "kohya": f"lora_unet_{i}"}
        for i in range(70)
    }
    run = changed(
        run,
        names=names,
        tags={"a": 3},
        losses=[0.5, float("nan"), 0.25],
        held_out=[(0, 0.9), (2, 0.4), (3, 0.6)],
        samples=[(0, "000000.png")],
        seconds=12.5,
        state=RunState.FINISHED,
        node="4:2",
        workflow="w",
    )
    path = RunStore(run.id).folder / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(run.to_json().replace('"folds"', '"rotations"'))
    return path


def test_the_newest_run_comes_first_and_equal_times_have_one_order(runs):
    ahead = numbered_run(7, started=4e9)  # the clock was or is wrong
    save(
        numbered_run(3),
        numbered_run(5, started=1003.0),
        numbered_run(4, started=1003.0),
        numbered_run(1),
        ahead,
        numbered_run(2, started=-5),
    )
    expected = [ahead.id, *(f"lora-{n:012x}" for n in (3, 4, 5, 1, 2))]
    assert ids() == expected
    save(numbered_run(5, started=1003.0), numbered_run(3))  # the order on disk differs
    assert ids() == expected
    assert [listed.summary.id for listed in RunIndex().look().runs] == expected


def test_a_list_without_runs_or_without_its_folder(runs):
    empty = {"runs": [], "total": 0, "page": 0, "pages": 0, "unread": [], "live": []}
    empty["stamp"] = routes.list_runs({})["stamp"]
    assert routes.list_runs({}) == empty
    runs.mkdir(parents=True)
    assert routes.list_runs({}) == empty
    assert routes.list_runs({"stamp": empty["stamp"]}) == {"stamp": empty["stamp"], "unchanged": True}


def test_a_run_whose_server_is_killed_changes_the_list(runs):
    """By hand: its record stays "running" to the byte, and only its lease tells that nothing trains it."""
    run = numbered_run(1)
    run.state = RunState.RUNNING
    save(run)
    with RunStore(run.id).owned():
        known = routes.list_runs({})
        assert known["live"] == [run.id]
        assert routes.list_runs({"stamp": known["stamp"]}) == {"stamp": known["stamp"], "unchanged": True}
    cut_off = routes.list_runs({"stamp": known["stamp"]})
    assert (cut_off["live"], [each["state"] for each in cut_off["runs"]]) == ([], ["running"])
    with RunStore(run.id).owned():  # it goes on, before anything new is saved
        assert routes.list_runs({"stamp": cut_off["stamp"]})["live"] == [run.id]


def test_pages_of_a_hundred(runs):
    save(*map(numbered_run, range(205)))
    newest_first = [f"lora-{n:012x}" for n in reversed(range(205))]
    assert ids() == ids(page="0") == newest_first[:100]
    assert ids(page="1") == newest_first[100:200]
    assert ids(page="2") == newest_first[200:]
    assert ids(page="3") == ids(page="999999999999999") == []
    answer = routes.list_runs({"page": "2"})
    assert (answer["total"], answer["page"], answer["pages"]) == (205, 2, 3)
    searched = routes.list_runs({"search": "12", "page": "0"})  # in a seed
    assert (searched["total"], searched["pages"]) == (len(searched["runs"]), 1)
    assert searched["stamp"] == answer["stamp"]


@pytest.mark.parametrize("page", ["", "one", "-1", "1.5", "0x1", "١", "1 ", "9" * 5000, "nan"])
def test_a_page_that_is_no_number_is_refused(runs, page):
    with pytest.raises(InputError, match=r"^page is '.{0,40}'; give a whole number from 0$"):
        routes.list_runs({"page": page})


def test_a_search_finds_runs_in_which_every_word_occurs(runs):
    word = make_run(
        "textual-inversion-00000000000a",
        "textual inversion",
        {"name": "Müller-FRIDA", "template": "style"},
        "Flux\ndev",
        3,
        trigger="<frida>",
    )
    save(
        numbered_run(1, trigger="a photo of sks"),
        numbered_run(2, state=RunState.KEPT, base="XL.safetensors"),
        word,
    )
    one, two = (f"lora-{n:012x}" for n in (1, 2))
    for search, expected in {
        "": {one, two, word.id},
        " \t\n ": {one, two, word.id},
        "lora": {one, two},
        "SKS  Photo": {one},
        "xl KEPT": {two},
        "müller": {word.id},
        "MÜLLER inversion textual": {word.id},
        "flux dev": {word.id},
        "fluxdev": set(),
        "caption_drop": {one, two},  # a setting's name
        "0.00005": {one, two},
        "5e-05": {one, two},
        "false attention": {one, two},
        "sks kept": set(),
        "lora-00": set(),  # the id is no word of the run
        ".*": set(),
    }.items():
        assert set(ids(search=search)) == expected, search


def test_the_stamp_changes_with_any_summary_and_with_nothing_else(runs):
    first, second = numbered_run(1), numbered_run(2)
    stamps = []

    def new_stamp() -> str:
        stamps.append(routes.list_runs({})["stamp"])
        assert len(set(stamps)) == len(stamps)
        for query in ({}, {"page": "5"}, {"search": "nothing"}):
            assert routes.list_runs(query | {"stamp": stamps[-1]}) == {"stamp": stamps[-1], "unchanged": True}
        assert all("runs" in routes.list_runs({"stamp": old}) for old in [*stamps[:-1], "", "x"])
        return stamps[-1]

    new_stamp()
    save(first)
    new_stamp()
    save(second)
    both = new_stamp()
    for trigger in ("aa", "bb", "cc", "dd"):  # of the same size, and maybe within one tick of the clock
        save(changed(second, trigger=trigger))
        new_stamp()
    save(changed(first, losses=[0.1]))
    new_stamp()
    save(first, second)
    assert routes.list_runs({})["stamp"] == both  # the stamp from before
    assert RunIndex().look().stamp == both  # also in another process
    os.utime(RunStore(first.id).folder / "record.json")
    assert routes.list_runs({})["stamp"] == both
    shutil.rmtree(RunStore(second.id).folder)
    assert routes.list_runs({})["stamp"] == stamps[1]
    RunStore(first.id).set_aside()
    assert routes.list_runs({})["stamp"] == stamps[0]
    assert ids() == []
    assert len(list(runs.iterdir())) == 1


def test_lists_read_each_summary_once(runs):
    run = numbered_run(1, losses=[0.5] * 5000, held_out=[(10, 0.5)], state=RunState.FINISHED)
    save(run)
    record, index = RunStore(run.id).folder / "record.json", RunIndex()

    def overwrite(path: Path) -> None:
        """Overwrite a file with spaces, with the same size and time: this shows who reads it."""
        before = path.stat()
        with path.open("r+") as file:
            file.write(" " * before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    overwrite(record)
    assert [listed.summary for listed in index.look().runs] == [summary_of(run)]
    overwrite(record.with_name("summary.json"))
    assert [listed.summary for listed in index.look().runs] == [summary_of(run)]
    assert RunIndex().look().runs == ()


def test_fields_of_a_summary(runs):
    record = record_of_0_1(
        numbered_run(
            1, trigger="sks", resolution="1024x1024", prediction="epsilon", architecture="sdxl", images=12, trained=99
        )
    )
    (listed,) = routes.list_runs({})["runs"]
    assert listed == {
        "id": "lora-000000000001",
        "technique": "lora",
        "base": "sd15.safetensors",
        "trigger": "sks",
        "images": 12,
        "trained": 99,
        "seconds": 12.5,
        "started": 1001.0,
        "state": "finished",
        "node": "4:2",
        "workflow": "w",
        "settings": numbered_run(1).info.settings,
        "resolution": "1024x1024",
        "prediction": "epsilon",
        "architecture": "sdxl",
        "steps_done": 3,
        "best": (2, 0.4),
        "label": "",
    }
    written = json.loads(record.with_name("summary.json").read_text())
    state = record.stat()
    assert written == json.loads(json.dumps({"record": [state.st_size, state.st_mtime_ns], **listed}))


def test_a_record_of_0_1_gets_a_summary_and_is_not_changed(runs):
    record = record_of_0_1(numbered_run(1))
    text = record.read_text()
    assert ids() == ["lora-000000000001"]
    (kept,) = RunIndex().look().runs
    assert (kept.summary.steps_done, kept.summary.best) == (3, (2, 0.4))
    assert record.read_text() == text
    assert len(RunStore("lora-000000000001").record().info.names) == 70


def test_a_training_writes_the_summary_that_its_record_gives(small, run_node):
    run = run_node("BespokeTrainLora", **request(small, 41, steps=2))[3]
    store = RunStore(run.id)
    written = (store.folder / "summary.json").read_bytes()
    assert store.summary() == summary_of(store.record())
    (store.folder / "summary.json").unlink()
    assert store.summary().steps_done == 2
    assert (store.folder / "summary.json").read_bytes() == written


def test_a_summary_of_another_record_is_not_shown(runs):
    run = numbered_run(1, losses=[0.5], state=RunState.RUNNING)
    save(run)
    index, record = RunIndex(), RunStore(run.id).folder / "record.json"
    summary, backup = record.with_name("summary.json").read_bytes(), runs.parent / "backup.json"
    shutil.copy2(record, backup)

    def states() -> set[str]:
        """The states in a list of this process and in one of a new process."""
        return {look.summary.state for one in (index, RunIndex()) for look in one.look().runs}

    assert states() == {"running"}
    later = changed(run, state=RunState.KEPT, losses=[0.5, 0.4])
    for _ in range(2):
        record.write_text(later.to_json())  # as version 0.1, or a process killed before it wrote the summary
        assert states() == {"kept"}
        record.with_name("summary.json").write_bytes(summary)
        assert RunIndex().look().runs[0].summary.state == "kept"
        os.replace(shutil.copy2(backup, runs.parent / "copy"), record)  # with its time, as from a backup
        assert states() == {"running"}
    record.with_name("summary.json").unlink()
    assert states() == {"running"}
    shutil.copytree(record.parent, runs / "moved")  # as to another user directory
    shutil.rmtree(record.parent)
    assert states() == set()
    (runs / "moved").rename(record.parent)
    assert states() == {"running"}


DEEP = "[" * 100_000 + "]" * 100_000
GOOD = numbered_run(9).to_json()


def nested(levels: int) -> str:
    return GOOD.replace('"tags": {}', '"tags": ' + '{"a": ' * levels + "{}" + "}" * levels)


def good_with(**values) -> str:
    return json.dumps(json.loads(GOOD) | values)


def appended_form_with(**values) -> str:
    """As `good_with`, in the form that has the losses in a separate file."""
    record = {name: value for name, value in json.loads(GOOD).items() if name != "losses"}
    return json.dumps(record | {"steps_done": 3, "state_file": ""} | values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        GOOD[:-1],
        "[]",
        "7",
        "null",
        '{"id": "lora-000000000009"}',
        "\0" * 100,
        DEEP,
        '{"a":' * 100_000,
        b"\xff\xfe\x00".decode("latin-1"),
        good_with(started="soon"),
        good_with(started=None),
        good_with(started=10**400),
        good_with(started=float("nan")),
        good_with(started=True),
        good_with(settings=[1]),
        good_with(settings="x"),
        good_with(technique=None),
        good_with(trigger=["x"]),
        good_with(losses=[10**400]),
        good_with(losses=7),
        good_with(held_out=[[1, 2, 3]]),
        good_with(held_out=[[float("inf"), 1.0]]),
        good_with(held_out={"a": 1}),
        good_with(images="8"),
        good_with(seconds={}),
        good_with(id="lora-00000000000a"),
        good_with(id="../../lora-000000000009"),
        good_with(id=9),
        good_with(state="dancing"),
        good_with(state=None),
        good_with(names=[]),
        appended_form_with(steps_done=-1),
        appended_form_with(steps_done=1_000_001),
        appended_form_with(steps_done=True),
        appended_form_with(steps_done="3"),
        appended_form_with(state_file=None),
        appended_form_with(state_file="../state.safetensors"),
        appended_form_with(state_file="state-1.safetensors"),
    ],
)
def test_a_broken_record_is_not_listed(runs, text):
    save(numbered_run(1))
    folder = runs / "lora-000000000009"
    folder.mkdir()
    (folder / "record.json").write_bytes(text.encode("latin-1"))
    index = RunIndex()
    for _ in range(2):
        assert [listed.summary.id for listed in index.look().runs] == ["lora-000000000001"]
        assert index.look().unread == ("lora-000000000009",)
    assert routes.match_run(wanted(request={"rank": 8}), {})["run"]["id"] == "lora-000000000001"
    assert routes.list_runs({})["unread"] == ["lora-000000000009"]
    save(numbered_run(9))
    assert len(index.look().runs) == 2
    assert index.look().unread == ()


@pytest.mark.parametrize("levels", [10, 200, 400, 700, 900])
def test_a_record_nested_deeply_breaks_no_answer(runs, levels):
    folder = runs / "lora-000000000009"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(nested(levels))
    assert len(ids()) <= 1
    with contextlib.suppress(RequestRefused):
        assert json.loads(routes.record_for_page("lora-000000000009"))["id"] == "lora-000000000009"


def test_odd_settings_are_left_out_and_long_ones_cut(runs):
    odd = {
        "list": [1],
        "none": None,
        "dict": {},
        "huge": 10**400,
        "inf": float("inf"),
        "yes": True,
        "text": "x" * 10**6,
        "number": -1e-300,
    }
    folder = runs / "lora-000000000009"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(
        good_with(settings=odd | {f"more{i}": i for i in range(1000)}, trigger="\ud800", base="y" * 10**6)
    )
    (summary,) = routes.list_runs({"search": "true -1e-300"})["runs"]
    assert {name: summary["settings"][name] for name in ("yes", "text", "number")} == {
        "yes": True,
        "text": "x" * 2000,
        "number": -1e-300,
    }
    assert not {"list", "none", "dict", "huge", "inf"} & set(summary["settings"])
    assert len(summary["settings"]) < 200
    assert len(summary["base"]) == 2000
    assert RunIndex().look().runs[0].summary.trigger == "\ud800"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: DEEP,
        lambda text: text.replace('"lora-', '"x-'),
        lambda text: text.replace('"started": 1009.0', '"started": "now"'),
        lambda text: text.replace('"started": 1009.0', '"started": NaN'),
        lambda text: text.replace('"best": null', '"best": [1]'),
        lambda text: text.replace(', "best": null', ""),
        lambda text: text.replace('"settings": {', '"settings": 7, "x": {'),
        lambda text: text + " " * 2_000_000,
        lambda text: text.replace('"steps_done": 0', f'"steps_done": 1{"0" * 400}'),
    ],
)
def test_a_broken_summary_is_made_again(runs, damage):
    save(numbered_run(9))
    path = RunStore("lora-000000000009").folder / "summary.json"
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    assert [listed.summary for listed in RunIndex().look().runs] == [summary_of(numbered_run(9))]
    assert path.read_text() == text


def test_entries_that_are_not_regular_files(runs):
    """Folders, named pipes, broken links, files of many gigabytes."""
    save(*map(numbered_run, range(1, 6)))
    folder = {number: RunStore(f"lora-{number:012x}").folder for number in range(1, 6)}
    (folder[1] / "summary.json").unlink()
    (folder[1] / "summary.json").mkdir()
    (folder[2] / "record.json").unlink()
    (folder[2] / "record.json").mkdir()
    for name in ("record.json", "summary.json"):
        with (folder[3] / name).open("r+b") as file:
            file.truncate(2**34)  # sparse: it uses no disk space
    (folder[4] / "summary.json").unlink()
    (folder[4] / "summary.json").symlink_to(folder[4] / "nowhere")
    (runs / "lora-0000000000ff").write_text("no folder")
    left = [numbered_run(5).id, numbered_run(4).id, numbered_run(1).id]
    if hasattr(os, "mkfifo"):
        for name in ("record.json", "summary.json"):
            (folder[5] / name).unlink()
            os.mkfifo(folder[5] / name)
        left = left[1:]
    for _ in range(2):
        assert ids() == left
    save(numbered_run(1))  # a training does not stop at a summary that cannot be written
    assert ids() == left
    assert [path.name for path in folder[1].iterdir() if path.name.endswith(".part")] == []


def test_only_runs_ids_are_runs(runs):
    save(numbered_run(1))
    good = RunStore("lora-000000000001").folder
    for name in (
        "lora-000000000001.20260101-101010",
        "lora-00000000000",
        "LORA-000000000002",
        "000000000002",
        "lora-00000000000g",
        "..x",
        "-000000000002\n",
    ):
        shutil.copytree(good, runs / name)
    shutil.copytree(good, runs / "lora-000000000002")  # a valid name with the record of another run
    assert ids() == ["lora-000000000001"]
    for name in ("..", "../runs", "lora-000000000001/..", "lora-000000000001.20260101-101010", "", "match"):
        with pytest.raises(RequestRefused, match="no such run"):
            routes.record_for_page(name)


@contextlib.contextmanager
def unprivileged_user():
    """Run as a user who owns no file here, since root may write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(os.name == "nt", reason="a folder there is never read-only")
def test_a_read_only_folder_is_listed():
    base = Path(tempfile.mkdtemp())  # pytest's temporary folder is closed to other users
    try:
        for number in (1, 2):
            RunStore(numbered_run(number).id, base).save_record(numbered_run(number, losses=[0.5]))
        edited = RunStore(numbered_run(1).id, base).folder
        (edited / "summary.json").unlink()
        (edited / "record.json").write_text(numbered_run(1, losses=[0.5, 0.4]).to_json())
        for path in (base, *base.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        index = RunIndex(lambda: base)
        with unprivileged_user():
            with pytest.raises(PermissionError):
                (edited / "summary.json").write_text("")
            for _ in range(2):
                assert [(run.summary.id, run.summary.steps_done) for run in index.look().runs] == [
                    (numbered_run(2).id, 1),
                    (numbered_run(1).id, 2),
                ]
        assert [path.name for path in edited.iterdir() if path.name != LOSSES] == ["record.json"]
        for path in (edited, edited / "record.json"):
            path.chmod(0o000)
        with unprivileged_user():
            assert [run.summary.id for run in index.look().runs] == [numbered_run(2).id]
        edited.chmod(0o755)
        with unprivileged_user():
            assert [run.summary.id for run in RunIndex(lambda: base).look().runs] == [numbered_run(2).id]
            unread_index = RunIndex(lambda: base)
            unread_index.look()
        (edited / "record.json").chmod(0o644)  # size and time do not change
        with unprivileged_user():
            assert len(unread_index.look().runs) == 2
    finally:
        for path in (base, *base.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(base)


def test_lists_during_saves_are_complete(runs):
    """One thread saves, several list: each list is a saved state, and none is older than the one before."""
    save(*(numbered_run(n) for n in range(10)))
    end, index, errors, seen = threading.Event(), RunIndex(), [], []

    def look() -> None:
        try:
            last = 0
            while not end.is_set():
                for one in (index, RunIndex()):
                    found = {listed.summary.id: listed.summary for listed in one.look().runs}
                    assert len(found) == 10
                    assert found[numbered_run(0).id].steps_done >= last
                    last = found[numbered_run(0).id].steps_done
                    seen.append(last)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(200):
        save(numbered_run(0, losses=[0.5] * step))
    end.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set(seen)) > 5
    assert index.look().runs == RunIndex().look().runs
    assert not list(runs.glob("*/.*"))  # no temporary file is left


# --- The run that a node shows ---------------------------------------------------------------------------------------


def wanted(**changes) -> bytes:
    return json.dumps(
        {"technique": "lora", "workflow": "w", "paths": ["1:2"], "request": {"seed": 1}} | changes
    ).encode()


def test_which_run_a_node_shows(runs):
    def run(number, seed, node="", workflow="", technique="lora"):
        return summary_of(
            numbered_run(
                number, node=node, workflow=workflow, technique=technique, settings={"seed": seed, "steps": number}
            )
        )

    found = [  # newest first
        run(9, 1, "1:2", "w", "textual inversion"),
        run(8, 5, "7", "w"),
        run(7, 1, "9", "w"),
        run(6, 1, "1:2", "other"),
        run(5, 2, "1:2", "w"),
        run(4, 1, "1:2", "w"),
        run(3, 3, "1:2", ""),
        run(2, 4),
        run(1, 1),
        run(0, 6, "", "new"),
    ]
    number = {run.id: int(run.id[-1]) for run in found}

    def shown(without=(), **changes):
        run, exact = find_run(
            [one for one in found if number[one.id] not in without], NodeRequest.from_json(wanted(**changes))
        )
        return run and number[run.id], exact

    assert shown() == (5, True)  # the run of this node, whatever its request
    assert shown(without=[5]) == (4, True)
    assert shown(workflow="new") == (6, False)  # a copy of the graph: the same node path and request
    assert shown(workflow="new", paths=["4", "9"]) == (7, False)
    assert shown(workflow="new", paths=["4", "1:2", "9"]) == (7, False)  # the newest of several paths
    assert shown(workflow="new", paths=["4"]) == (7, False)  # the same request of another node
    assert shown(workflow="new", paths=[]) == (7, False)
    assert shown(workflow="new", request={"seed": 3}) == (3, False)
    assert shown(workflow="", request={"seed": 3}) == (3, True)  # two graphs without an id
    assert shown(workflow="") == (6, False)
    assert shown(workflow="new", request={"seed": 4}) == (2, False)
    assert shown(workflow="new", paths=[""], request={"seed": 4}) == (2, False)  # an empty path matches no node
    assert shown(workflow="new", paths=[""], request={"seed": 6}) == (0, False)
    assert shown(workflow="new", request={"seed": 99}) == (None, False)
    assert shown(workflow="new", request={}) == (None, False)
    assert shown(technique="textual inversion") == (9, True)
    assert shown(technique="none") == (None, False)


@pytest.mark.parametrize(
    ("technique", "request_type"), [("lora", LoraRequest), ("textual inversion", InversionRequest)]
)
def test_a_setting_later_than_0_1_has_a_default(technique, request_type):
    """Without a default it would give every earlier run a new id."""
    names = {field.name for kind in (TrainConfig, request_type) for field in fields(kind)} - {"train", "resume"}
    later = names - SETTINGS_0_1[technique] - NOT_IDENTITY
    assert later <= set(defaults_of(TrainConfig, request_type))


def test_same_request():
    settings = {
        "seed": 7,
        "learning_rate": 1e-4,
        "ema": 0.0,
        "dropout": True,
        "prompt": "a",
        "loraplus_lr_ratio": 4.0,
    } | dict.fromkeys(NOT_IDENTITY, 1)
    same = {"seed": 7, "learning_rate": 1e-4, "ema": 0, "dropout": True, "prompt": "a", "a_new_widget": 3}
    assert same_request(settings, same)
    assert same_request(settings, same | dict.fromkeys(NOT_IDENTITY, 2))
    assert same_request(settings, same | {"seed": 7.0, "learning_rate": 1e-4 + 9e-10})
    assert not same_request(settings, same | {"learning_rate": 1e-4 + 2e-9})
    assert same_request({"seed": 2**64 - 1}, {"seed": 1.8446744073709552e19})  # as JavaScript rounds it
    assert same_request({"seed": 2**64 - 1}, {"seed": 18446744073709552000})
    assert not same_request({"seed": 10**6}, {"seed": 10**6 + 1})
    assert not same_request({"seed": 10**15}, {"seed": 10**15 + 1})
    for name, value in (
        ("dropout", 1),
        ("seed", "7"),
        ("ema", False),
        ("prompt", None),
        ("prompt", "b"),
        ("seed", None),
    ):
        assert not same_request(settings, same | {name: value}), name
    assert not same_request(settings, {})
    assert not same_request(settings, dict.fromkeys(NOT_IDENTITY, 1))  # no setting that identifies a run
    assert not same_request({}, same)


@pytest.mark.parametrize(
    ("technique", "request_type"), [("lora", LoraRequest), ("textual inversion", InversionRequest)]
)
def test_a_run_that_does_not_name_a_setting_has_it_at_its_default(technique, request_type):
    """The oracle: the rule that a setting at its default is left out of a record, and that 0.1 had none of the later
    ones. So a node that asks for another value of any of them does not show that run."""
    defaults = setting_defaults()[technique]
    later = {name: value for name, value in defaults.items() if name not in SETTINGS_0_1[technique] | NOT_IDENTITY}
    assert {"min_timestep", "loss_type"} <= set(later)
    assert ({"preserve", "adapter"} <= set(later)) == (technique == "lora")
    old = {"seed": 1, "learning_rate": 1e-4}
    assert same_request(old, old | later | {"resume": False, "compile": True}, defaults)
    assert same_request(old, old, defaults)  # a page whose nodes have none of them
    for name, value in later.items():
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else "other"
        assert not same_request(old, old | later | {name: other}, defaults), name
        assert same_request(old | {name: other}, old | later | {name: other}, defaults), name
        assert not same_request(old | {name: other}, old | later, defaults), name
    assert not same_request({}, later, defaults)


def test_the_route_knows_the_defaults(runs):
    save(numbered_run(1, settings={"seed": 1}))

    def shown(**request):
        return routes.match_run(wanted(paths=[], request={"seed": 1} | request), setting_defaults())["run"]

    assert shown(preserve="")["id"] == numbered_run(1).id
    assert shown(preserve="a dog") is None


def test_odd_values_in_a_request_match_nothing(runs):
    save(numbered_run(1, settings={"seed": 1, "prompt": "x" * 3000, "huge": 1.7e308}))
    assert routes.match_run(wanted(request={"prompt": "x" * 3000}), {})["run"]["id"] == numbered_run(1).id
    for odd in (10**400, -(10**308), float("nan"), float("inf"), [], {}, {"a": 1}, None, True, "1"):
        assert routes.match_run(wanted(request={"seed": odd, "huge": 1.7e308}), {}) == {"run": None, "exact": False}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (DEEP.encode(), "no JSON"),
        (b"[]", "the body is a list; send an object"),
        (b"null", "the body is missing"),
        (b"7", "the body is a number"),
        (b"{}", "technique is missing; give a text"),
        (b" " * 1_000_001, "the body has 1,000,001 bytes"),
        (wanted(technique=1), "technique is a number; give a text"),
        (wanted(workflow=None), "workflow is missing; give a text"),
        (wanted(paths="1:2"), "paths is a text; give a list"),
        (wanted(paths=["1", 2]), "one of paths is a number; give texts like '1:2'"),
        (wanted(paths=[None]), "one of paths is missing"),
        (wanted(paths=[["1"]]), "one of paths is a list"),
        (wanted(request=[]), "request is a list; give an object"),
        (wanted(request=True), "request is a boolean; give an object"),
    ],
)
def test_bad_bodies_are_refused(runs, body, words):
    with pytest.raises(InputError, match=words):
        routes.match_run(body, {})


def test_the_routes_answer(runs):
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    class Server:
        routes = web.RouteTableDef()

    record_of_0_1(numbered_run(1))
    save(numbered_run(2, state=RunState.KEPT))

    async def request_all():
        routes.register(Server, setting_defaults())
        app = web.Application()
        app.add_routes(Server.routes)
        async with TestClient(TestServer(app)) as client:

            async def get(path, **query):
                answer = await client.get(path, params=query)
                return answer.status, await answer.json()

            async def post(path, body):
                answer = await client.post(path, data=body, headers={"Content-Type": "application/json"})
                return answer.status, await answer.json()

            listed = await get("/bespoke/runs", search="kept", page="0")
            return [
                listed,
                await get("/bespoke/runs", stamp=listed[1]["stamp"]),
                await get("/bespoke/runs", page="two"),
                await post("/bespoke/runs/match", wanted()),
                await post("/bespoke/runs/match", b"[]"),
                await get("/bespoke/runs/lora-000000000001"),
                await get("/bespoke/runs/match"),
                await get("/bespoke/runs/..%2Fruns"),
                await post("/bespoke/runs/lora-000000000001/finish", b""),
                await post("/bespoke/runs/match/finish", b""),
            ]

    listed, same, wrong, match, no_match, record, none, hostile, finish, finish_none = asyncio.run(request_all())
    assert listed[0] == 200
    assert [run["id"] for run in listed[1]["runs"]] == [numbered_run(2).id]
    assert same == (200, {"stamp": listed[1]["stamp"], "unchanged": True})
    assert wrong == (400, {"error": "page is 'two'; give a whole number from 0"})
    assert match[0] == 200
    assert match[1] == {"run": match[1]["run"], "exact": False}
    assert match[1]["run"]["id"] == numbered_run(1).id
    assert no_match == (
        400,
        {"error": "the body is a list; send an object with technique, workflow, paths and request"},
    )
    assert record[0] == 200
    assert "names" not in record[1]
    assert record[1]["losses"] == [0.5, None, 0.25]
    assert record[1]["samples"] == [[0, "000000.png"]]
    assert none == hostile == finish_none == (404, {"error": "no such run"})
    assert finish == (409, {"error": "the run is finished, so there is nothing to finish"})

"""The files of version 0.1 in this folder, and the script that wrote them with the pack of that version.

    python3 dev.py test -m bench tests/samples_0_1/make.py

The files prove that later versions read what 0.1 wrote. Do not write them again with later code. All of them but
`folders/` come from this script: they went through the nodes and the routes, except lora-0123456789ab, a record in
which the script replaces numbers by null.

runs/       a finished run of 6 steps, a run that was interrupted after 3 steps, a run that was finished early after 4
            steps, and the record with nulls
loras/      the LoRA of the finished run in each key format; the LoRAs as they were on the wire: of the finished run
            (finished), of the same run after 8 steps (longer), of the other runs (interrupted, kept) and of the job
words/      a word as an embedding file of ComfyUI and of AUTOMATIC1111
job/        an exported job of a small Flux and the LoRA of its training; tests/lib/samples.py writes its base model
made.json   ids, losses, and the machine on which the files were made
folders/    two folders of finished runs, by trainings with version 0.1 on the models of tests/lib/tiny.py: a LoRA of 12
            steps with one sample image (tests/comfy/test_run_folder.py has its settings), and a word
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import samples
import torch

pytestmark = pytest.mark.bench
ROOT = Path(__file__).resolve().parents[2]


def test_make(run_node, comfyui, tmp_path):
    import comfy.model_management
    import folder_paths
    import server
    from comfy_api.latest import io
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    here = samples.SAMPLES
    for name in ("runs", "loras", "words", "job"):
        shutil.rmtree(here / name, ignore_errors=True)
        (here / name).mkdir()
    folder_paths.set_user_directory(str(tmp_path))
    runs = tmp_path / "bespoke" / "runs"
    # As if the page had queued the graph, which a run saves next to its record.
    queued = (0, "test-prompt", {}, {"extra_pnginfo": {"workflow": samples.WORKFLOW}}, [])
    server.PromptServer.instance.prompt_queue.currently_running[0] = queued
    made = {"machine": samples.machine(), "runs": {}}

    whole = {
        which: run_node("BespokeTrainLora", **samples.lora_request(run_node, which, resume=False))
        for which in samples.SEEDS
    }
    ids = {which: out[3].id for which, out in whole.items()}
    shutil.copytree(runs / ids["finished"], here / "runs" / ids["finished"])
    longer = run_node("BespokeTrainLora", **samples.lora_request(run_node, "finished", steps=8))
    save_file(longer[1], here / "loras" / "longer.safetensors")
    with (
        samples.after_step(3, comfy.model_management.interrupt_current_processing),
        pytest.raises(comfy.model_management.InterruptProcessingException),
    ):
        run_node("BespokeTrainLora", **samples.lora_request(run_node, "interrupted", resume=False))
    shutil.copytree(runs / ids["interrupted"], here / "runs" / ids["interrupted"])
    with samples.over_http() as address:

        def finish():
            urllib.request.urlopen(
                urllib.request.Request(f"{address}/bespoke/runs/{ids['kept']}/finish", method="POST")
            ).read()

        with samples.after_step(4, finish):
            kept = run_node("BespokeTrainLora", **samples.lora_request(run_node, "kept", resume=False))
    assert kept[3].state == "kept"
    shutil.copytree(runs / ids["kept"], here / "runs" / ids["kept"])
    for which, lora in (
        ("finished", whole["finished"][1]),
        ("interrupted", whole["interrupted"][1]),
        ("kept", kept[1]),
    ):
        save_file(lora, here / "loras" / f"{which}.safetensors")
        record = json.loads((here / "runs" / ids[which] / "record.json").read_text())
        made["runs"][which] = {"id": ids[which], "state": record["state"], "done": len(record["losses"])}
    made["losses"] = {which: out[2]["loss"] for which, out in whole.items()} | {
        "kept": kept[2]["loss"],
        "longer": longer[2]["loss"],
    }

    odd = json.loads((runs / ids["finished"] / "record.json").read_text())
    odd |= {
        "id": "lora-0123456789ab",
        "losses": [0.5, None, 0.25],
        "held_out": [[0, 0.9], [2, None], [3, 0.6]],
        "seconds": 12.5,
    }
    odd["settings"] |= {"learning_rate": None, "a_later_setting": [1, 2]}
    odd["a_later_field"] = {"of": "another version"}
    (here / "runs" / odd["id"]).mkdir()
    (here / "runs" / odd["id"] / "record.json").write_text(json.dumps(odd))

    hidden = {
        io.Hidden.prompt: {"1": {"class_type": "BespokeTrainLora", "inputs": {}}},
        io.Hidden.extra_pnginfo: {"workflow": samples.WORKFLOW},
    }
    out = whole["finished"]
    for key_format, dtype in (("kohya", "fp16"), ("kohya", "fp32"), ("diffusers", "fp32"), ("comfy", "fp32")):
        (name,) = run_node(
            "BespokeSaveLora",
            lora=out[1],
            run=out[3],
            filename_prefix=f"samples/{key_format}-{dtype}",
            key_format=key_format,
            dtype=dtype,
            hidden=hidden,
        )
        shutil.copy(comfyui / "models" / "loras" / name, here / "loras" / f"{key_format}-{dtype}.safetensors")
    _, embedding, _, _, run, _ = run_node(
        "BespokeTrainTextualInversion", **samples.word_request(run_node, resume=False)
    )
    for kind in ("comfy", "a1111"):
        run_node(
            "BespokeSaveEmbedding",
            embedding=embedding,
            run=run,
            name=f"{samples.WORD}-{kind}",
            format=kind,
            hidden=hidden,
        )
        shutil.copy(comfyui / "models" / "embeddings" / f"{samples.WORD}-{kind}.safetensors", here / "words")

    model, clip, vae = samples.job_models(comfyui)
    folder, _ = run_node(
        "BespokeExportLoraJob",
        model=model,
        clip=clip,
        vae=vae,
        images=samples.pictures(run_node, 2, 14),
        folder="samples/job",
        **samples.JOB,
    )
    shutil.copytree(folder, here / "job", dirs_exist_ok=True)
    command = [
        sys.executable,
        str(ROOT / "nodes" / "jobs" / "command.py"),
        folder,
        "--base-directory",
        str(comfyui),
        "--cpu",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (Path(folder) / "result").iterdir()
    shutil.copy(result, here / "loras" / "job.safetensors")
    (here / "made.json").write_text(json.dumps(made, indent=1) + "\n")

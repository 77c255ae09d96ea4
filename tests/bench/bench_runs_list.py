"""The cost of the page's list of 2,000 runs: processor time and bytes of each kind of request.

    python3 dev.py test -m bench tests/bench/bench_runs_list.py -s

The records are like those of an SDXL training: the names of 280 layers, 1,000 losses, the held-out curve, and 45
settings, more than there are today. Each row is the least of several rounds, with the JSON text that the server sends.
"after an upgrade" has no summaries, so every record is read once. A page has to take less than `MOST_SECONDS` and
`MOST_BYTES`, with an empty index too.
"""

import json
import random
import time

import pytest

pytestmark = pytest.mark.bench

RUNS, ROUNDS, SETTINGS = 2000, 5, 45
MOST_SECONDS, MOST_BYTES = 0.3, 200_000


def layer_names(blocks: int = 70) -> dict[str, dict[str, str]]:
    """What files call the four cross-attention layers of each transformer block of SDXL, about 60 KB."""
    names = {}
    for number in range(blocks):
        for layer in (
            f"transformer_blocks.{number // 9}.attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")
        ):
            ours = f"output_blocks.{number % 9}.1.{layer}"
            theirs = f"unet.up_blocks.{number % 9 // 3}.attentions.{number % 3}.{layer}"
            names[f"diffusion_model.{ours}"] = {"kohya": f"lora_unet_{ours.replace('.', '_')}", "diffusers": theirs}
    return names


@pytest.fixture(scope="module")
def runs(comfyui, tmp_path_factory):
    """The ids of the runs, oldest first, in a temporary user directory."""
    import folder_paths
    from bespoke.nodes.bridge.runs.store import RunStore
    from bespoke.nodes.lora.training.technique import LoraRequest
    from bespoke.training.config import TrainConfig
    from bespoke.training.record import RunState
    from run_records import make_run

    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path_factory.mktemp("user")))
    draw, names = random.Random(0), layer_names()
    settings = LoraRequest(TrainConfig(1000, 1e-4, 4, 0)).settings() | {"loraplus_lr_ratio": 4.0}
    settings |= {f"a_later_setting_{i}": 1e-5 * i for i in range(SETTINGS - len(settings))}
    ids = [f"lora-{number:012x}" for number in range(RUNS)]
    for number, run_id in enumerate(ids):
        run = make_run(
            run_id,
            "lora",
            settings | {"seed": draw.getrandbits(63), "sample_prompt": "a photo of sks person in a garden, soft light"},
            "sd_xl_base_1.0.safetensors",
            20,
            trigger="sks person",
            tags={f"tag {i}": i for i in range(100)},
            resolution="1024x1024",
            prediction="epsilon",
            architecture="stable-diffusion-xl-v1-base/lora",
            base_hash="0" * 64,
            clip_skip="-2",
            trained=23_000_000,
            names=names,
            losses=[draw.random() for _ in range(1000)],
            held_out=[(step, draw.random()) for step in range(0, 1001, 50)],
            samples=[(step, f"{step:06}.png") for step in range(0, 1001, 100)],
            node=f"{number % 50}",
            workflow=f"{draw.getrandbits(128):032x}",
            seconds=draw.random() * 3600,
            state=RunState.FINISHED,
            started=1.7e9 + number,
        )
        RunStore(run_id).save_record(run)
    yield ids
    folder_paths.set_user_directory(before)


def test_a_page_of_2000_runs(runs, monkeypatch):
    from bespoke.nodes.bridge.runs import routes
    from bespoke.nodes.bridge.runs.index import RunIndex
    from bespoke.nodes.bridge.runs.store import SUMMARY, RunStore
    from bespoke.nodes.jobs.techniques import setting_defaults

    def empty_index() -> None:
        monkeypatch.setattr(routes, "RUNS", RunIndex())

    def one_changed() -> None:
        store = RunStore(runs[RUNS // 2])
        run = store.record()
        run.losses.append(0.5)
        store.save_record(run)

    def upgraded() -> None:
        empty_index()
        for run_id in runs:
            (RunStore(run_id).folder / SUMMARY).unlink()

    def measure(request, before=lambda: None, rounds: int = ROUNDS) -> tuple[float, dict, int]:
        """(least processor seconds, the response, its bytes)"""
        seconds = []
        for _ in range(rounds):
            before()
            began = time.process_time()
            answer = request()
            text = json.dumps(answer, separators=(",", ":"), allow_nan=False)
            seconds.append(time.process_time() - began)
        return min(seconds), answer, len(text)

    settings = RunStore(runs[0]).record().info.settings
    body = {"technique": "lora", "workflow": "another", "paths": ["no node"], "request": settings}  # the oldest run
    match, defaults = json.dumps(body).encode(), setting_defaults()
    page, stamp = (lambda: routes.list_runs({})), routes.list_runs({})["stamp"]
    rows = {
        "first, empty index": measure(page, empty_index),
        "second": measure(page),
        "unchanged stamp": measure(lambda: routes.list_runs({"stamp": stamp})),
        "search, last page": measure(lambda: routes.list_runs({"search": "sks XL finished", "page": "19"})),
        "first search, empty index": measure(lambda: routes.list_runs({"search": "sks"}), empty_index),
        "match, the oldest run": measure(lambda: routes.match_run(match, defaults)),
        "match, no run": measure(lambda: routes.match_run(match.replace(b'"rank": ', b'"rank": 9'), defaults)),
        "one run changed": measure(page, one_changed),
        "after an upgrade": measure(page, upgraded, rounds=1),
    }
    record = (RunStore(runs[0]).folder / "record.json").stat().st_size
    summary = (RunStore(runs[0]).folder / SUMMARY).stat().st_size
    print(f"\n{RUNS:,} runs, {len(settings)} settings; a record has {record:,} bytes, a summary {summary:,}")
    print(f"{'request':28s}{'processor s':>12s}{'bytes':>10s}")
    for name, (seconds, _, size) in rows.items():
        print(f"{name:28s}{seconds:12.4f}{size:10,}")
    assert rows["first, empty index"][1]["total"] == rows["after an upgrade"][1]["total"] == RUNS
    assert rows["unchanged stamp"][1]["unchanged"]
    assert len(rows["search, last page"][1]["runs"]) == 100
    assert rows["match, the oldest run"][1]["run"]["id"] == runs[0]
    assert rows["match, no run"][1] == {"run": None, "exact": False}
    for name, (seconds, _, size) in rows.items():
        assert size < MOST_BYTES, name
        assert seconds < MOST_SECONDS or name == "after an upgrade", name

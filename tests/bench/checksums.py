"""Checksums of what the nodes compute and write, to show that a change of the code changes no number.

    python3 tests/bench/checksums.py OUT.json             write the table, about five minutes on one core
    python3 tests/bench/checksums.py --compare A.json B.json    name the rows that differ; exit status 1 where any does

The table maps a row's name to a SHA-256. Make it before and after a change, on the same machine and with the same
ComfyUI and PyTorch: sums of floating point numbers differ between processors.

Only public things are used: node ids with their inputs and outputs, the files that are written, the routes and
`nodes/jobs/command.py`. So the script runs unchanged on both sides of a change of the code. All is computed on the CPU
with one thread and fixed seeds, in float32 where the row's name does not say otherwise.

Rows under `reports/` are the texts that nodes show, with times, rates and memory replaced by `#`.

Left out, because they differ from run to run: times and dates (`seconds` and `started` of a record, the summary's
`record` and times, `modelspec.date`), what names a folder of this machine, and the state of a run at the moment of an
interruption, whose step depends on the clock. The resumed run is in the table.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
TIMES = {"seconds", "started", "record"}  # of a record and of a summary
DATES = {"modelspec.date"}
VARYING = re.compile(r"[\d.,]+ ?(images/s|pictures/s|it/s|ms|s|min|h|KB|MB|GB|MiB|GiB)\b|\d+:\d\d(:\d\d)?")


def enter_environment() -> None:
    """Restart in the environment that dev.py prepares, if this process is not in it."""
    if os.environ.get("COMFYUI_PATH"):
        return
    sys.path.insert(0, str(ROOT))
    import dev

    env = dev.environment() | dev.prepare(with_tests=True) | {"OMP_NUM_THREADS": "1"}
    os.execve(dev.PYTHON, [str(dev.PYTHON), os.path.abspath(__file__), *sys.argv[1:]], env)


# --- hashes ---------------------------------------------------------------------------------------------------------


def sha(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def raw(tensor) -> bytes:
    """dtype, shape and bytes of a tensor."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    return f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def hash_tensors(tensors) -> str:
    """The hash of {key: tensor}, in the given order of the keys."""
    return sha(b"".join(key.encode() + b"\0" + raw(tensor) for key, tensor in tensors.items()))


def hash_json(value) -> str:
    return sha(json.dumps(value, sort_keys=True, default=str))


class Table:
    """The rows; a name may be given once."""

    def __init__(self):
        self.rows: dict[str, str] = {}
        self.places: list[str] = []

    def add(self, name: str, digest: str) -> None:
        if name in self.rows:
            raise ValueError(f"the row {name!r} is there already; give the second one another name")
        self.rows[name] = digest

    def tensor(self, name: str, tensor) -> None:
        self.add(name, sha(raw(tensor)))

    def json(self, name: str, value) -> None:
        self.add(name, hash_json(value))

    def text(self, name: str, text: str) -> None:
        """A report: times, rates, memory and this machine's folders do not count."""
        for place in self.places:
            text = text.replace(place, "#")
        fixed = VARYING.sub("#", text)
        if os.environ.get("BESPOKE_SHOW_REPORTS"):
            print(f"--- {name}\n{fixed}")
        self.add(f"reports/{name}", sha(fixed))

    def file(self, name: str, path: Path) -> None:
        """A safetensors file: keys, dtypes, shapes and bytes; its metadata without dates."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
            meta = file.metadata() or {}
        self.add(f"{name}/tensors", hash_tensors(tensors))
        self.json(f"{name}/metadata", {key: value for key, value in meta.items() if key not in DATES})


# --- ComfyUI in this process ----------------------------------------------------------------------------------------


def read_run(folder: Path) -> tuple[dict, Path]:
    """(the record in the form of version 0.1, the state's file) of a run's folder, of 0.1 or of today."""
    record = json.loads((folder / "record.json").read_text())
    if "losses" in record:
        return record, folder / "state.safetensors"
    lines = (folder / "losses.jsonl").read_text().splitlines()
    record["losses"] = [json.loads(line) for line in lines[: record.pop("steps_done")]]
    record["rotations"] = record.pop("folds")
    return record, folder / record.pop("state_file")


class Host:
    """ComfyUI with the pack's nodes, the models that are trained, and the table that is filled."""

    def __init__(self):
        sys.path[:0] = [str(TESTS / "small_model"), str(TESTS / "lib")]
        import inprocess

        self.base = inprocess.start_comfyui()
        import torch

        torch.set_num_threads(1)
        spec = importlib.util.spec_from_file_location(
            "bespoke", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        self.pack = importlib.util.module_from_spec(spec)
        sys.modules["bespoke"] = self.pack
        spec.loader.exec_module(self.pack)
        asyncio.run(self._load_nodes())
        self.table = Table()
        self.table.places = [str(self.base), str(ROOT), os.environ["COMFYUI_PATH"], sys.executable]

    async def _load_nodes(self) -> None:
        import nodes

        await nodes.init_builtin_extra_nodes()
        self.ours, extension = {}, await self.pack.comfy_entrypoint()
        await extension.on_load()  # adds the routes
        for node in await extension.get_node_list():
            self.ours[node.GET_SCHEMA().node_id] = node
        nodes.NODE_CLASS_MAPPINGS |= self.ours

    def run(self, node_id: str, hidden=None, **inputs):
        """A node's outputs, run as ComfyUI runs it; inputs that are not given have the schema's default."""
        import nodes
        import torch
        from comfy_api.latest import io
        from comfy_execution.utils import CurrentNodeContext

        cls = nodes.NODE_CLASS_MAPPINGS[node_id]
        with torch.inference_mode(), CurrentNodeContext("checksums", "1", 0):
            if not issubclass(cls, io.ComfyNode):
                return getattr(cls(), cls.FUNCTION)(**inputs)
            for item in cls.GET_SCHEMA().inputs:
                default = getattr(item, "default", None)
                if default is None and item.get_io_type() == "COMBO":
                    default = item.options[0]
                if item.id not in inputs and not item.optional and default is not None:
                    inputs[item.id] = default
            return cls.PREPARE_CLASS_CLONE({"hidden_inputs": hidden or {}}).EXECUTE_NORMALIZED(**inputs).args

    # --- models ---

    def load_models(self) -> None:
        """small: the small model of SD1.5's classes, from its checkpoint. tiny: SD1.5 in a hundredth of its size."""
        import model as small_model
        import tiny
        import torch

        name = f"bespoke-small-{small_model.RECIPE}.safetensors"
        path = Path(os.environ.get("BESPOKE_CACHE") or ROOT / ".dev" / "cache") / name
        if not path.is_file():
            small_model.write_checkpoint(path)
        (self.base / "models" / "checkpoints" / name).symlink_to(path)
        self.small = self.run("CheckpointLoaderSimple", ckpt_name=name)
        with torch.inference_mode():
            self.tiny = tiny.patcher(), tiny.clip(), tiny.vae()
            self.smallest = tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()
            self.sdxl = tiny.sdxl()

    # --- pictures ---

    def pictures(
        self, seed: int, count: int, side: int = 64, height: int = 0, masks: bool = False, captions=None, **kind
    ):
        """A training set of `count` sprites through Bespoke Image Batch. side, height: px; height 0 is a square."""
        import numpy as np
        import sprites
        import torch
        from PIL import Image

        pairs = sprites.training_set(np.random.default_rng(seed), count, **(kind or {"colour": "teal"}))
        shown = [np.array(image.resize((side, height or side), Image.NEAREST)) for image, _ in pairs]
        pixels = torch.from_numpy(np.stack(shown)).float() / 255
        given = {"images": pixels, "captions": captions or "\n".join(text for _, text in pairs), "trigger": ""}
        if masks:
            given["masks"] = pixels.mean(-1).sub(0.5).abs().gt(0.2).float()
        return self.run("BespokeImageBatch", **given)[0]

    # --- trainings ---

    @property
    def runs(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_user_directory()) / "bespoke" / "runs"

    def _folders(self) -> set[str]:
        return {path.name for path in self.runs.iterdir()} if self.runs.is_dir() else set()

    def _add_runs(self, name: str, own: str, before: set[str]) -> None:
        """Add the records, summaries, states and samples on disk of a run and of its folds."""
        table = self.table
        record, _ = read_run(self.runs / own)
        table.add(f"{name}/id", sha(own))
        for part in ("settings", "names", "losses", "held_out"):
            table.json(f"{name}/{part}", record[part])
        table.json(f"{name}/record", {key: value for key, value in record.items() if key not in TIMES})
        others = sorted(run for run in self._folders() - before - {own} if "." not in run)  # with a dot: set aside
        for number, run in enumerate([own, *others]):
            of = name if run == own else f"{name}/part {number}"
            folder = self.runs / run
            record, state = read_run(folder)
            if run != own:
                table.json(f"{of}/record", {key: value for key, value in record.items() if key not in TIMES})
            summary = json.loads((folder / "summary.json").read_text())
            table.json(f"{of}/summary", {key: value for key, value in summary.items() if key not in TIMES})
            table.file(f"{of}/state", state)
            for path in sorted(folder.glob("samples/*.png")):
                table.add(f"{of}/samples/{path.name}", sha(path.read_bytes()))

    def lora(self, name: str, /, models=None, pictures=None, resume=False, hidden=None, **settings):
        """Train a LoRA and add its rows; returns the node's outputs."""
        model, clip, vae = models or self.tiny
        given = dict(
            steps=5, batch_size=2, rank=4, alpha=4.0, learning_rate=1e-2, seed=7, precision="fp32", resume=resume
        )
        before = self._folders()
        out = self.run(
            "BespokeTrainLora",
            model=model,
            clip=clip,
            vae=vae,
            images=pictures or self.pictures(2, 6),
            hidden=hidden,
            **given | settings,
        )
        name = f"train lora/{name}"
        self.table.add(f"{name}/lora", hash_tensors(out[1]))
        self.table.json(f"{name}/loss", out[2]["loss"])
        self._add_runs(name, out[3].id, before)
        self.table.text(name, out[4])
        return out

    def word(self, name: str, /, models=None, pictures=None, resume=False, hidden=None, **settings):
        """Train a word and add its rows; returns the node's outputs."""
        model, clip, vae = models or self.tiny
        given = dict(
            name="teal-thing",
            init_text="red",
            steps=5,
            batch_size=2,
            learning_rate=1e-2,
            seed=7,
            precision="fp32",
            resume=resume,
        )
        before = self._folders()
        out = self.run(
            "BespokeTrainTextualInversion",
            model=model,
            clip=clip,
            vae=vae,
            images=pictures or self.pictures(2, 4),
            hidden=hidden,
            **given | settings,
        )
        name = f"train word/{name}"
        self.table.add(f"{name}/word", hash_tensors(out[1]))
        self.table.json(f"{name}/loss", out[3]["loss"])
        self.table.json(f"{name}/prompt_word", out[2])
        self._add_runs(name, out[4].id, before)
        self.table.text(name, out[5])
        return out

    @contextlib.contextmanager
    def at_step(self, step: int, action):
        """Call `action` once when the progress bar reaches a step, or soon after it."""
        import comfy.utils

        def hook(value, *_, **__):
            if value >= step:
                comfy.utils.set_progress_bar_global_hook(None)
                action()

        comfy.utils.set_progress_bar_global_hook(hook)
        try:
            yield
        finally:
            comfy.utils.set_progress_bar_global_hook(None)

    # --- outputs of a model ---

    def text(self, clip, prompt: str):
        return self.run("CLIPTextEncode", clip=clip, text=prompt)[0]

    def latent(self, seed: int = 1, cells: int = 8, count: int = 1):
        import torch

        return {"samples": torch.randn(count, 4, cells, cells, generator=torch.Generator().manual_seed(seed))}

    def sampled(
        self, model, clip=None, latent=None, prompt="a teal circle on black", sampler="euler", steps=4, denoise=1.0
    ):
        """Latents of core's KSampler with the small model."""
        clip = clip or self.small[1]
        latent = latent or {"samples": self.latent()["samples"] * 0}
        return self.run(
            "KSampler",
            model=model,
            seed=3,
            steps=steps,
            cfg=2.0,
            sampler_name=sampler,
            scheduler="normal",
            positive=self.text(clip, prompt),
            negative=self.text(clip, ""),
            latent_image=latent,
            denoise=denoise,
        )[0]["samples"]


# --- the parts of the table -----------------------------------------------------------------------------------------


def schemas(host: Host) -> None:
    """What ComfyUI tells the page of each node. First of all: lists of files change with what is written."""
    for name, cls in sorted(host.ours.items()):
        host.table.json(f"schema/{name}", cls.GET_NODE_INFO_V1())


def train_loras(host: Host) -> None:
    lora, pictures = host.lora, host.pictures
    host.teal = lora("default", host.small, steps=4)
    lora("auto precision", host.small, steps=4, precision="auto")
    lora("bf16", precision="bf16")
    lora(
        "every default of the node",
        steps=3,
        rank=8,
        alpha=8.0,
        learning_rate=1e-4,
        batch_size=4,
        seed=0,
        precision="auto",
        resume=True,
    )
    lora(
        "all of the objective",
        host.small,
        steps=4,
        loss_weighting="min-SNR",
        timestep_sampling="logit-normal",
        noise_offset=0.1,
        caption_dropout=0.5,
        ema=0.9,
        gradient_accumulation=2,
    )
    host.both = lora("text encoder", host.small, steps=4, train_text_encoder=True, text_encoder_lr=1e-3)
    lora("text encoder at the model's rate", train_text_encoder=True)
    lora("sdxl", host.sdxl, targets="attention", train_text_encoder=True, text_encoder_lr=1e-3, pictures=pictures(2, 4))
    lora("priors", prior_images=pictures(5, 3, colour="red"), prior_weight=0.5, pictures=pictures(2, 4))
    lora("held out best", pictures=pictures(2, 10), validation=2, steps=12)
    lora("held out last", pictures=pictures(2, 10), validation=2, steps=12, keep="last", ema=0.5)
    lora("held out of their own", validation_images=pictures(9, 3), steps=11)
    lora("rotation", host.smallest, validation=2, steps=11)
    lora("rotation last", host.smallest, pictures=pictures(2, 4), validation=1, steps=10, keep="last")
    lora("gradient checkpointing", host.small, steps=3, gradient_checkpointing=True)
    lora("gradient checkpointing tiny", gradient_checkpointing=True, targets="attention")
    for optimizer in ("AdamW", "Adafactor", "SGD"):
        lora(f"optimizer {optimizer}", optimizer=optimizer, max_grad_norm=0.1)
    for schedule in ("constant", "linear", "cosine", "cosine with restarts"):
        lora(f"schedule {schedule}", lr_schedule=schedule, warmup_steps=2, steps=7)
    for sampling in ("importance", "uniform", "logit-normal", "shifted"):
        lora(f"timesteps {sampling}", timestep_sampling=sampling, steps=3)
    lora("weighting debiased", loss_weighting="debiased")
    lora("weighting min-SNR", loss_weighting="min-SNR")
    for targets in ("attention", "attention + feed-forward"):
        lora(f"targets {targets}", targets=targets, steps=3)
    lora("targets custom", targets="custom", custom_targets="*attn2.to_k, *attn2.to_v", steps=3)
    lora("starts from a lora", lora=lora("a start", steps=3)[1], seed=8)
    lora("no clipping of gradients", max_grad_norm=0.0)
    lora("masks", pictures=pictures(2, 5, masks=True))
    lora("wide pictures", pictures=pictures(2, 4, side=96, height=64))
    lora("samples and saves", host.small, steps=4, sample_every=2, sample_prompt="a teal heart", save_every=2)
    for path in sorted((host.base / "models" / "loras" / "bespoke").rglob("*.safetensors")):
        host.table.file(f"saved on the way/{path.relative_to(host.base / 'models' / 'loras')}", path)


def resume(host: Host) -> None:
    """A longer run resumes from a shorter one, and from an interrupted and a kept one."""
    import comfy.model_management

    table, common = host.table, dict(seed=31, lr_schedule="constant")
    host.lora("go on/8 steps at once", **common, steps=8)
    host.lora("go on/4 steps", **common, steps=4)
    again = host.lora("go on/4 and then 8", **common, steps=8, resume=True)
    host.lora("go on/the same again", **common, steps=8, resume=True)
    host.lora("go on/fewer begins anew", **common, steps=2, resume=True)
    assert table.rows["train lora/go on/4 and then 8/lora"] == table.rows["train lora/go on/8 steps at once/lora"], (
        "resuming changes the result"
    )
    assert len(again[2]["loss"]) == 8
    words = dict(seed=32, lr_schedule="constant", vectors=2)
    host.word("go on/6 steps at once", **words, steps=6)
    host.word("go on/3 steps", **words, steps=3)
    host.word("go on/3 and then 6", **words, steps=6, resume=True)
    assert table.rows["train word/go on/3 and then 6/word"] == table.rows["train word/go on/6 steps at once/word"], (
        "resuming changes the result"
    )
    model, clip, vae = host.tiny
    given = dict(
        model=model,
        clip=clip,
        vae=vae,
        images=host.pictures(2, 6),
        steps=40,
        batch_size=2,
        rank=4,
        alpha=4.0,
        learning_rate=1e-2,
        seed=33,
        precision="fp32",
    )
    with (
        host.at_step(3, comfy.model_management.interrupt_current_processing),
        contextlib.suppress(comfy.model_management.InterruptProcessingException),
    ):
        host.run("BespokeTrainLora", **given, resume=False)
        raise AssertionError("the training was not interrupted")
    out = host.lora("go on/after an interrupt", steps=40, seed=33, resume=True)
    host.table.add("train lora/go on/after an interrupt/model", sha(raw(_predict(out[0]))))
    host.lora("go on/without an interrupt", steps=40, seed=33)
    assert (
        table.rows["train lora/go on/after an interrupt/lora"]
        == table.rows["train lora/go on/without an interrupt/lora"]
    ), "an interrupt changes the result"


def _predict(model):
    import tiny

    return tiny.predict(model)


def train_words(host: Host) -> None:
    word, pictures = host.word, host.pictures
    host.trained_word = word("default", host.small, steps=4, vectors=2)
    word("auto precision", host.small, steps=4, precision="auto")
    word("bf16", precision="bf16")
    for init in ("words", "average", "noise"):
        word(f"init {init}", init=init, vectors=3, init_text="a red circle")
    captions = "a photo of {word} on black\n{word}, white background\nthe {word}\n{word}"
    for template in ("object", "style", "captions"):
        word(
            f"template {template}",
            template=template,
            pictures=pictures(2, 4, captions=captions) if template == "captions" else None,
        )
    word("norm limit", norm_limit=0.5, learning_rate=0.1)
    word(
        "all of the objective", loss_weighting="min-SNR", gradient_accumulation=2, lr_schedule="linear", warmup_steps=2
    )
    word("held out", pictures=pictures(2, 10), validation=2, steps=11)
    word("rotation", host.smallest, pictures=pictures(2, 4), validation=1, steps=10)
    word("masks", pictures=pictures(2, 4, masks=True))
    host.trained_word_sdxl = word("sdxl", host.sdxl, vectors=2)
    word("samples and saves", host.small, steps=4, sample_every=2, sample_prompt="a {word}", save_every=2)
    for path in sorted((host.base / "models" / "embeddings").rglob("*.safetensors")):
        host.table.file(f"saved on the way/{path.relative_to(host.base / 'models')}", path)


def files(host: Host) -> None:
    """LoRAs and words as files, in every format and precision, and what the loaders read of them."""
    from comfy_api.latest import io

    table, loras, embeddings = host.table, host.base / "models" / "loras", host.base / "models" / "embeddings"
    graph = {
        io.Hidden.prompt: {"1": {"class_type": "BespokeSaveLora", "inputs": {}}},
        io.Hidden.extra_pnginfo: {"workflow": {"id": "a", "nodes": []}},
    }
    for which, out in (("unet", host.teal), ("unet and text encoder", host.both)):
        for key_format in ("kohya", "diffusers", "comfy"):
            for dtype in ("fp16", "bf16", "fp32"):
                given = dict(
                    lora=out[1],
                    run=out[3],
                    key_format=key_format,
                    dtype=dtype,
                    filename_prefix=f"sums/{which}-{key_format}-{dtype}",
                )
                name, *_ = host.run("BespokeSaveLora", hidden=graph, **given)
                table.file(f"save lora/{which}/{key_format}/{dtype}", loras / name)
                table.json(f"save lora/{which}/{key_format}/{dtype}/name", name)
                lora, words, report = host.run("BespokeLoadLora", lora_name=name)
                table.add(f"load lora/{which}/{key_format}/{dtype}", hash_tensors(lora))
                table.json(f"load lora/{which}/{key_format}/{dtype}/trigger_words", words)
                table.text(f"load lora/{which}/{key_format}/{dtype}", report)
    name, *_ = host.run("BespokeSaveLora", lora=host.teal[1], filename_prefix="sums/alone")
    table.file("save lora/without a run", loras / name)
    for which, out in (("clip", host.trained_word), ("two encoders", host.trained_word_sdxl)):
        for kind in ("comfy", "a1111"):
            if which == "two encoders" and kind == "a1111":
                continue  # one tensor a file is all that this format has
            name = f"sums-{which.replace(' ', '-')}-{kind}"
            (prompt_word,) = host.run(
                "BespokeSaveEmbedding", embedding=out[1], name=name, run=out[4], format=kind, hidden=graph
            )
            table.json(f"save word/{which}/{kind}/prompt_word", prompt_word)
            table.file(f"save word/{which}/{kind}", embeddings / f"{name}.safetensors")
    host.run("BespokeSaveEmbedding", embedding=host.trained_word[1], name="sums-alone")
    table.file("save word/without a run", embeddings / "sums-alone.safetensors")
    clip, prompt_word = host.run(
        "BespokeApplyEmbedding", clip=host.small[1], embedding=host.trained_word[1], name="applied"
    )
    table.json("apply word/prompt_word", prompt_word)
    table.tensor("apply word/conditioning", host.text(clip, f"a photo of {prompt_word}")[0][0])
    report, plot = host.run(
        "BespokeInspectEmbedding", clip=host.small[1], embedding_name="none", embedding=host.trained_word[1]
    )
    table.tensor("inspect word/plot", plot)
    table.text("inspect word", report)


def inject(host: Host) -> None:
    import tiny

    table = host.table
    base = host.tiny[0]
    lora = tiny.random_lora(tiny.linear_layers(base))

    def add_row(name, model, output=_predict, **inputs):
        out = host.run(
            "BespokeInjectLora",
            model=model,
            lora_name=inputs.pop("lora_name", "none"),
            **{"strength_model": 1.0} | inputs,
        )
        table.tensor(f"inject/{name}", output(out[0]))
        if inputs.get("clip"):
            table.tensor(f"inject/{name}/clip", host.text(out[1], "a teal circle")[0][0])
        table.text(f"inject/{name}", out[2])
        table.json(f"inject/{name}/trigger_words", out[3])

    for mode in ("merge", "bypass"):
        for name, scope in {
            "plain": {},
            "weak": {"strength_model": 0.37},
            "query 0": {"query": 0.0},
            "key 0.5, out 0": {"key": 0.5, "out": 0.0},
            "value 2": {"value": 2.0},
            "blocks": {"blocks": "*, mid:0"},
            "blocks by place": {"blocks": "down, up.1-2:0.5"},
        }.items():
            add_row(f"{mode}/{name}", base, lora=lora, mode=mode, **scope)
        for name, when in {
            "from 0.3 to 0.7": {"start_percent": 0.3, "end_percent": 0.7},
            "keyframes": {"keyframes": "0:0\n0.5:1\n1:0.2"},
        }.items():
            add_row(
                f"{mode}/{name}",
                host.small[0],
                lora=host.teal[1],
                mode=mode,
                output=lambda model: host.sampled(model),
                **when,
            )
        model, clip, _ = host.small
        add_row(
            f"{mode}/file with text encoder",
            model,
            clip=clip,
            lora_name="sums/unet and text encoder-kohya-fp32_00001.safetensors",
            strength_clip=0.6,
            mode=mode,
            output=lambda model: host.sampled(model),
        )
    table.tensor("train lora/default/model output", host.sampled(host.teal[0]))
    table.tensor("train lora/text encoder/model output", host.sampled(host.both[0], host.both[5]))
    table.tensor("train word/default/clip output", host.text(host.trained_word[0], f"a {host.trained_word[2]}")[0][0])


def compose(host: Host) -> None:
    import tiny

    table = host.table
    layers = tiny.linear_layers(host.tiny[0])
    loras = {
        "lora0": tiny.random_lora(layers, 4, 2.0, 0),
        "lora1": tiny.random_lora(layers, 2, None, 1),
        "lora2": tiny.random_lora(layers, 8, 8.0, 2),
    }
    for name, given in {
        "exact": {},
        "strengths": {"strengths": "0.5\n-1\n0.25"},
        "rank 3": {"rank": 3},
        "rank 6, strengths": {"rank": 6, "strengths": "1\n0.5\n2"},
    }.items():
        lora, report, heatmap = host.run("BespokeComposeLoras", loras=loras, **given)
        table.add(f"compose/{name}", hash_tensors(lora))
        table.tensor(f"compose/{name}/heatmap", heatmap)
        table.text(f"compose/{name}", report)
    for name, given in {
        "wire": {"lora": loras["lora0"]},
        "wire and model": {"lora": loras["lora0"], "model": host.tiny[0]},
        "file": {"lora_name": "sums/unet and text encoder-kohya-fp16_00001.safetensors"},
        "trained": {"lora": host.teal[1], "model": host.small[0]},
    }.items():
        report, heatmap = host.run("BespokeInspectLora", **{"lora_name": "none"} | given)
        table.tensor(f"inspect/{name}/heatmap", heatmap)
        table.text(f"inspect/{name}", report)


CONTRACTS = ("noise level", "diffusers", "diffusers flow", "a1111", "comfy")


def img2img(host: Host) -> None:
    table, (model, clip, _) = host.table, host.small
    positive, negative = host.text(clip, "a red circle"), host.text(clip, "")
    (flow,) = host.run("ModelSamplingSD3", model=model, shift=3.0)
    for which, at in (("eps", model), ("flow", flow)):
        for contract in CONTRACTS:
            for exact in (False, True):
                for strength, scheduler, sampler in ((0.6, "normal", "euler"), (0.3, "karras", "dpm_2")):
                    name = (
                        f"{which}/{contract}/{'exact steps' if exact else 'steps of the whole'}/{strength} {scheduler} "
                        f"{sampler}"
                    )
                    try:
                        sigmas, report, plot = host.run(
                            "BespokeStrengthSigmas",
                            model=at,
                            scheduler=scheduler,
                            steps=8,
                            strength=strength,
                            contract=contract,
                            exact_steps=exact,
                            sampler_name=sampler,
                        )
                    except ValueError as error:
                        table.text(f"strength sigmas/{name}/refused", str(error))
                        continue
                    table.tensor(f"strength sigmas/{name}", sigmas)
                    table.tensor(f"strength sigmas/{name}/plot", plot)
                    table.text(f"strength sigmas/{name}", report)
    for name, given in {
        "euler": {},
        "exact steps": {"exact_steps": True, "strength": 0.35},
        "ancestral": {"sampler_name": "euler_ancestral", "scheduler": "karras"},
        "all": {"strength": 1.0},
        "nothing": {"strength": 0.0},
        "flow": {"model": flow, "scheduler": "simple"},
        **{contract: {"contract": contract, "strength": 0.5} for contract in CONTRACTS if contract != "diffusers flow"},
        "diffusers flow": {"model": flow, "contract": "diffusers flow", "scheduler": "simple", "strength": 0.5},
    }.items():
        given = (
            dict(
                model=model,
                positive=positive,
                negative=negative,
                latent_image=host.latent(4),
                strength=0.6,
                steps=5,
                cfg=2.0,
                sampler_name="euler",
                scheduler="normal",
                seed=9,
            )
            | given
        )
        latent, start, sigmas, report = host.run("BespokePartialDenoise", **given)
        table.tensor(f"partial denoise/{name}/latent", latent["samples"])
        table.tensor(f"partial denoise/{name}/start", start["samples"])
        table.tensor(f"partial denoise/{name}/sigmas", sigmas)
        table.text(f"partial denoise/{name}", report)


def inpaint(host: Host) -> None:
    import torch

    table, (model, clip, _) = host.table, host.small
    mask = torch.zeros(1, 64, 64)
    mask[:, 13:44, 20:51] = 1
    soft = torch.linspace(0, 1, 64).expand(1, 64, 64).contiguous()
    for name, given in {
        "auto": {},
        "re-inject": {"blend": "re-inject"},
        "prediction": {"blend": "prediction"},
        "differential": {"blend": "differential", "mask": soft},
        "grow and feather": {"grow": 9, "feather": 12},
        "shrunk, hard": {"grow": -6, "feather": 0},
        "area": {"coverage": "area"},
        "min strength": {"blend": "differential", "mask": soft, "min_strength": 0.3},
        "bias": {"blend": "prediction", "bias": 0.4},
        "preservation": {"preservation": 0.5},
    }.items():
        out, latent, covered, preview, report = host.run(
            "BespokeLatentMaskBlend", **dict(model=model, latent=host.latent(5), mask=mask) | given
        )
        table.tensor(f"latent mask blend/{name}/noise mask", latent["noise_mask"])
        table.tensor(f"latent mask blend/{name}/latent mask", covered)
        table.tensor(f"latent mask blend/{name}/preview", preview)
        table.text(f"latent mask blend/{name}", report)
        for sampler in ("euler", "dpmpp_2m") if name in ("auto", "prediction") else ("euler",):
            table.tensor(
                f"latent mask blend/{name}/{sampler}", host.sampled(out, clip, latent, sampler=sampler, denoise=0.8)
            )
    noise = torch.Generator().manual_seed(6)
    original, generated = (torch.rand(2, 64, 64, 3, generator=noise) for _ in range(2))
    for name, given in {
        "default": {},
        "hard": {"feather": 0},
        "colours": {"match_color": 1.0},
        "soft mask": {"mask": soft},
        "wide": {"feather": 20, "match_color": 0.5},
    }.items():
        image, report, changed = host.run(
            "BespokeRestoreUnmasked", **dict(original=original, generated=generated, mask=mask) | given
        )
        table.tensor(f"restore unmasked/{name}", image)
        table.json(f"restore unmasked/{name}/changed outside", changed)
        table.text(f"restore unmasked/{name}", report)


def folders(host: Host) -> None:
    """Training sets from a folder of pictures: through the contact sheet and through what a training makes of them."""
    import numpy as np
    from PIL import Image

    table, folder = host.table, host.base / "input" / "sums"
    folder.mkdir()
    random = np.random.default_rng(12)
    for number, (width, height) in enumerate(((192, 128), (128, 192), (160, 160), (260, 140), (128, 128))):
        field = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 4), np.uint8)
        image = Image.fromarray(np.kron(field, np.ones((8, 8, 1), np.uint8))[:height, :width])
        (image if number % 2 else image.convert("RGB")).save(folder / f"picture {number}.png")
        Image.fromarray(np.kron(field[..., 0], np.ones((8, 8), np.uint8))[:height, :width]).save(
            folder / f"picture {number}-mask.png"
        )
        (folder / f"picture {number}.txt").write_text(f"thing number {number}, on a ground\n")
    for name, given in {
        "text files": {},
        "file names": {"captions": "file names"},
        "template": {"captions": "template", "template": "{trigger}, {name}", "trigger": "sks"},
        "trigger": {"trigger": "sks"},
        "squares": {"bucket": False},
        "flip and repeats": {"flip": True, "repeats": 2},
        "mask files": {"masks": "*-mask.png"},
        "alpha": {"masks": "alpha"},
        "resolution 100": {"resolution": 100},
    }.items():
        images, preview, report, *_ = host.run(
            "BespokeImageFolder", **dict(folder="sums", captions="text files", resolution=128) | given
        )
        table.tensor(f"image folder/{name}/preview", preview)
        table.text(f"image folder/{name}", report)
        table.json(
            f"image folder/{name}/items",
            [
                [item.name, item.caption, sha(raw(item.pixels)), item.mask is not None and sha(raw(item.mask))]
                for item in images.items
            ],
        )
        host.lora(f"image folder/{name}", host.smallest, images, steps=3)


def compare(host: Host) -> None:
    import torch

    table = host.table
    noise = torch.Generator().manual_seed(8)
    images = {
        f"image{i}": torch.rand(count, height, width, 3, generator=noise)
        for i, (count, height, width) in enumerate(((2, 64, 64), (1, 96, 48), (3, 40, 80)))
    }
    for name, labels in {
        "plain": "",
        "labels": "one\ntwo\nthree",
        "rows and columns": "LoRA | weak\nLoRA | strong\nword | weak",
    }.items():
        image, report = host.run("BespokeCompare", images=images, labels=labels, runs={})
        table.tensor(f"compare/{name}", image)
        table.text(f"compare/{name}", report)
    # The sheet shows how long a run took: say so in its record, and take the finished run from the disk.
    given = dict(steps=3, seed=41, pictures=host.pictures(2, 10), validation=2)
    out = host.lora("compare", **given)
    path = host.runs / out[3].id / "record.json"
    record = json.loads(path.read_text()) | {"seconds": 12.5}
    path.write_text(json.dumps(record))
    run = host.lora("compare again", **given, resume=True)[3]
    image, report = host.run("BespokeCompare", images=images, labels="", runs={"run0": run})
    table.tensor("compare/run", image)
    table.text("compare/run", report)


def export_jobs(host: Host) -> None:
    """Job folders, and the results of the command for them, in separate processes."""
    import comfy.sd
    import tiny
    import torch
    from safetensors.torch import save_file

    table, (model, clip, vae) = host.table, host.small
    with torch.inference_mode():
        made, clip3, vae3 = tiny.sd3()
        path = host.base / "models" / "diffusion_models" / "tiny-sd3.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in made.model.diffusion_model.state_dict().items()}, path)
        model3 = comfy.sd.load_diffusion_model(str(path))
    common = dict(batch_size=2, learning_rate=1e-2, seed=5, precision="fp32", keep="last")
    sd3 = dict(
        model=model3,
        clip=clip3,
        vae=vae3,
        images=host.pictures(2, 5, masks=True),
        validation_images=host.pictures(9, 3),
        steps=12,
        rank=4,
        alpha=4.0,
        **common,
    )
    (patched,) = host.run("BespokeInjectLora", model=model, lora_name="none", lora=host.teal[1], strength_model=0.7)[:1]
    text = dict(
        model=patched,
        clip=clip,
        vae=vae,
        images=host.pictures(2, 4),
        steps=4,
        rank=2,
        alpha=2.0,
        train_text_encoder=True,
        text_encoder_lr=1e-4,
        **common,
    )
    word = dict(
        model=model,
        clip=clip,
        vae=vae,
        images=host.pictures(2, 4),
        name="job-teal",
        init_text="green",
        vectors=2,
        steps=4,
        **common,
    )
    jobs, started = {}, {}
    for name, node, given in (
        ("sd3", "BespokeExportLoraJob", sd3),
        ("text encoder on a LoRA", "BespokeExportLoraJob", text),
        ("word", "BespokeExportTextualInversionJob", word),
    ):
        folder, report = host.run(node, folder=f"jobs/{name.replace(' ', '-')}", **given)
        job = jobs[name] = Path(folder)
        table.json(f"job/{name}/files", sorted(path.name for path in job.iterdir()))
        table.add(f"job/{name}/job.toml", sha((job / "job.toml").read_bytes()))
        table.add(f"job/{name}/material.json", sha((job / "material.json").read_bytes()))
        table.add(f"job/{name}/graph.json", sha((job / "graph.json").read_bytes()))
        table.file(f"job/{name}/material", job / "material.safetensors")
        table.text(f"job/{name}", report)
        command = [
            sys.executable,
            str(ROOT / "nodes" / "jobs" / "command.py"),
            str(job),
            "--base-directory",
            str(host.base),
            "--cpu",
        ]
        started[name] = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    host.lora(
        "job sd3",
        (model3, clip3, vae3),
        sd3["images"],
        **{k: v for k, v in sd3.items() if k not in ("model", "clip", "vae", "images")},
    )
    host.lora(
        "job text encoder",
        (patched, clip, vae),
        text["images"],
        **{k: v for k, v in text.items() if k not in ("model", "clip", "vae", "images")},
    )
    host.word(
        "job word",
        host.small,
        word["images"],
        **{k: v for k, v in word.items() if k not in ("model", "clip", "vae", "images")},
    )
    for name, job in jobs.items():
        output, _ = started[name].communicate(timeout=300)
        assert started[name].returncode == 0, f"the command ended with {started[name].returncode}:\n{output}"
        (result,) = (job / "result").glob("*.safetensors")
        table.json(f"job/{name}/result/name", result.name)
        table.file(f"job/{name}/result", result)
        (folder,) = (job / "runs").iterdir()
        record, _ = read_run(folder)
        table.json(f"job/{name}/result/record", {key: value for key, value in record.items() if key not in TIMES})
        events = [json.loads(line) for line in (job / "log.jsonl").read_text().splitlines()]
        table.json(f"job/{name}/result/events", [event["event"] for event in events])


def routes(host: Host) -> None:
    """Answers over HTTP, of the routes that the pack has added to ComfyUI's server."""
    import server
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    table, app = host.table, web.Application()
    app.add_routes(server.PromptServer.instance.routes)
    run = host.teal[3].id
    checkpoint = {
        "type": "CheckpointLoaderSimple",
        "input": None,
        "values": {"ckpt_name": os.path.basename(str(next((host.base / "models" / "checkpoints").iterdir())))},
    }
    flow = [checkpoint, {"type": "ModelSamplingSD3", "input": "model", "values": {"shift": 3.0}}]

    def without_times(value):
        if isinstance(value, dict):
            return {
                key: without_times(item)
                for key, item in value.items()
                if key not in TIMES | {"modified", "size", "time", "stamp"}
            }
        return [without_times(item) for item in value] if isinstance(value, list) else value

    async def request_all():
        async with TestClient(TestServer(app)) as client:

            async def add(name, path, /, **query):
                answer = await client.get(path, params=query)
                body = await answer.read()
                with contextlib.suppress(ValueError):
                    body = json.dumps(without_times(json.loads(body)), sort_keys=True).encode()
                for place in table.places:
                    body = body.replace(place.encode(), b"#")
                table.add(f"route/{name}", sha(f"{answer.status}".encode() + body))

            for number, (strength, contract, exact, scheduler) in enumerate(
                (
                    (0.5, "diffusers", "false", "normal"),
                    (0.3, "noise level", "true", "karras"),
                    (0, "comfy", "false", "simple"),
                )
            ):
                query = dict(
                    strength=str(strength),
                    steps="12",
                    contract=contract,
                    exact_steps=exact,
                    scheduler=scheduler,
                    sampler_name="euler",
                )
                await add(f"schedule/{number}", "/bespoke/schedule", **query)
                await add(
                    f"schedule/{number} of the small model",
                    "/bespoke/schedule",
                    model=json.dumps([checkpoint]),
                    **query,
                )
                await add(f"schedule/{number} of a flow", "/bespoke/schedule", model=json.dumps(flow), **query)
            await add("schedule/refused", "/bespoke/schedule", strength="2", steps="x")
            for key_format in ("kohya", "diffusers", "comfy"):
                await add(
                    f"lora/{key_format}",
                    "/bespoke/lora",
                    name=f"sums/unet and text encoder-{key_format}-fp32_00001.safetensors",
                )
            await add("lora/not there", "/bespoke/lora", name="gone.safetensors")
            await add("folder", "/bespoke/folder", name="sums")
            await add("folder/not there", "/bespoke/folder", name="gone")
            await add("run", f"/bespoke/runs/{run}")
            await add("run/files", f"/bespoke/runs/{run}/files")
            await add("run/graph", f"/bespoke/runs/{run}/graph")
            await add("run/not there", "/bespoke/runs/lora-000000000000")
            await add("runs/page", "/bespoke/runs", page="x")
            await add("runs/search", "/bespoke/runs", search="no such words anywhere")

    asyncio.run(request_all())


PARTS = (
    schemas,
    train_loras,
    resume,
    train_words,
    files,
    inject,
    compose,
    img2img,
    inpaint,
    folders,
    compare,
    export_jobs,
    routes,
)


def main(arguments: list[str]) -> int:
    if len(arguments) == 3 and arguments[0] == "--compare":
        return differences(*(json.loads(Path(path).read_text()) for path in arguments[1:]))
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    enter_environment()
    began = time.monotonic()
    host = Host()
    host.load_models()
    print(f"{'start':12} {time.monotonic() - began:6.1f} s", flush=True)
    for part in PARTS:
        before, rows = time.monotonic(), len(host.table.rows)
        part(host)
        print(f"{part.__name__:12} {time.monotonic() - before:6.1f} s {len(host.table.rows) - rows:5} rows", flush=True)
    Path(arguments[0]).write_text(json.dumps(host.table.rows, indent=0, sort_keys=True) + "\n")
    print(f"{len(host.table.rows)} rows in {time.monotonic() - began:.0f} s")
    return 0


def differences(before: dict[str, str], after: dict[str, str]) -> int:
    """Print the rows that differ. 1 where any row differs, is missing or is new, else 0."""
    found = 0
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            found += 1
            print("missing " if name not in after else "new     " if name not in before else "differs ", name)
    print(f"{found} of {len(before.keys() | after.keys())} rows differ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

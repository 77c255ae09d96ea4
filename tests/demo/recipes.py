"""The recipes: blueprints that train a LoRA of a subject, a style or a concept on one family of models.

A value is published by another program (`PUBLISHED` names the file), or it is the advice of this pack's help page; the
note inside each blueprint says which. Only SD1.5 is run here, with the small model of the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

DIFFUSERS = "diffusers, examples/dreambooth"
AI_TOOLKIT = "ai-toolkit, config/examples"
MUSUBI = "musubi-tuner, docs"
ONE_TRAINER = "OneTrainer, training_presets"
KOHYA = "kohya_ss, presets/lora"
FIND_RATE = "BespokeFindLearningRate"
PREFIX = "LoRA recipe - "  # of the blueprints' names
GOALS = ("subject", "style", "concept")
MOTION = "motion"  # of clips, for the models that make films
TARGETS = {
    "subject": "cross-attention",
    "style": "attention + feed-forward",
    "concept": "attention",
    MOTION: "attention",
}
HELD_OUT = {"subject": 2, "style": 8, "concept": 4, MOTION: 4}
ADVICE = {
    "subject": "One person, animal or thing. 5 to 20 pictures, with a trigger word that no prompt has otherwise.",
    "style": "The look of many different things. 50 to 200 pictures; captions say what is shown, not how it looks.",
    "concept": (
        "A kind of thing, a pose or a garment. 20 to 100 pictures of different examples; captions name all else."
    ),
    MOTION: (
        "How something moves. 10 to 50 short films of one movement with different things, in scenes of at least the "
        "clip's length; captions say what is shown and that it moves so."
    ),
}


@dataclass(frozen=True)
class Loader:
    """A loader node: class, values, the widgets that the outer node has, and what its outputs give."""

    kind: str
    values: dict[str, str]
    gives: dict[str, str]  # "model", "clip" or "vae" -> the name of the output


@dataclass(frozen=True)
class Values:
    """What differs by goal. accumulation: model calls per step. source: where rate, steps and batch come from.

    frames: of a clip, 0 for pictures; fps: frames a second. frames_source: where both come from.
    """

    rank: int
    rate: float
    steps: int
    batch: int
    source: str
    accumulation: int = 1
    dropout: float = 0.0
    rank_source: str = ""
    frames: int = 0
    fps: float = 0.0
    frames_source: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of models.

    goals: by goal. resolution: px. sampling: (steps, CFG, scheduler) of the samples and of the sweep, from `shown`.
    """

    loaders: tuple[Loader, ...]
    goals: dict[str, Values]
    resolution: int
    resolution_source: str
    sampling: tuple[int, float, str]
    shown: str
    tried: str = "Not tried here: no model of this family was trained with these values."
    saves_memory: bool = True
    notes: tuple[str, ...] = field(default=())


def checkpoint(name: str) -> tuple[Loader, ...]:
    gives = {"model": "MODEL", "clip": "CLIP", "vae": "VAE"}
    return (Loader("CheckpointLoaderSimple", {"ckpt_name": name}, gives),)


def parts(unet: str, clip: Loader, vae: str) -> tuple[Loader, ...]:
    return (
        Loader("UNETLoader", {"unet_name": unet}, {"model": "MODEL"}),
        clip,
        Loader("VAELoader", {"vae_name": vae}, {"vae": "VAE"}),
    )


def one_clip(name: str, kind: str) -> Loader:
    return Loader("CLIPLoader", {"clip_name": name, "type": kind}, {"clip": "CLIP"})


HELP = "the help page of Train LoRA"
SEEN = f"{HELP}: 80 times each of 100 pictures; 50 to 150 is usual"
WAN_PICTURES = {
    "notes": ("Wan 2.1 text to video, trained on pictures: it learns looks and no movement. Samples are one frame.",)
}
WAN_CLIPS = {
    "frames": 45,
    "fps": 16.0,
    "frames_source": f"{MUSUBI}/dataset_config.md, which takes 25 and 45 of 16 a second for Wan",
    "notes": ("Wan 2.1 text to video. Samples are films of at most 33 frames; the cells of the sweep are one frame.",),
}
FAMILIES = {
    "SD1.5": Family(
        checkpoint("v1-5-pruned-emaonly-fp16.safetensors"),
        {
            "subject": Values(8, 1e-4, 500, 1, f"{DIFFUSERS}/README.md (LoRA)", rank_source=f"{HELP}: 4 to 8"),
            "style": Values(
                16,
                3e-4,
                2000,
                4,
                f"{ONE_TRAINER}/SD1.5/#sd 1.5 LoRA.json; steps: {SEEN}",
                rank_source="OneTrainer's default, 16",
            ),
            "concept": Values(
                16,
                3e-4,
                1000,
                4,
                f"{ONE_TRAINER}/SD1.5/#sd 1.5 LoRA.json; steps: {HELP}, 80 times each of 50 pictures",
                rank_source="OneTrainer's default, 16",
            ),
        },
        512,
        f"{DIFFUSERS}/README.md and OneTrainer's preset, 512",
        (20, 8.0, "normal"),
        "KSampler's defaults",
        tried="Run here on a small model of SD1.5's classes (64 px), which tests the graph and not the values.",
        saves_memory=False,
    ),
    "SDXL": Family(
        checkpoint("sd_xl_base_1.0.safetensors"),
        {
            "subject": Values(8, 1e-4, 500, 1, f"{DIFFUSERS}/README_sdxl.md", 4, rank_source=f"{HELP}: 4 to 8"),
            "style": Values(
                32,
                3e-5,
                2700,
                3,
                f"{KOHYA}/SDXL - LoRA AI_characters standard v1.1.json; steps: {SEEN}",
                dropout=0.05,
                rank_source="the same preset, 32",
            ),
            "concept": Values(
                16,
                3e-4,
                1000,
                4,
                f"{ONE_TRAINER}/#sdxl 1.0 LoRA.json; steps: {HELP}, 80 times each of 50 pictures",
                rank_source="the same preset, 16",
            ),
        },
        1024,
        f"{DIFFUSERS}/README_sdxl.md, 1024",
        (20, 8.0, "normal"),
        "KSampler's defaults",
    ),
    "Flux": Family(
        parts(
            "flux1-dev.safetensors",
            Loader(
                "DualCLIPLoader",
                {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"},
                {"clip": "CLIP"},
            ),
            "ae.safetensors",
        ),
        {
            "subject": Values(
                16,
                1e-4,
                500,
                1,
                f"rate: {AI_TOOLKIT}/train_lora_flux_24gb.yaml; steps and batch: {DIFFUSERS}/README_flux.md",
                4,
                rank_source="ai-toolkit's file, 16",
            ),
            "style": Values(
                16,
                1e-4,
                2000,
                1,
                f"{AI_TOOLKIT}/train_lora_flux_24gb.yaml",
                dropout=0.05,
                rank_source="the same file, 16",
            ),
            "concept": Values(
                16,
                3e-4,
                1000,
                4,
                f"{ONE_TRAINER}/Flux Dev.1/#flux LoRA.json; steps: {HELP}, 80 times each of 50 pictures",
                rank_source="OneTrainer's default, 16",
            ),
        },
        768,
        f"OneTrainer's preset, 768; {AI_TOOLKIT}/train_lora_flux_24gb.yaml has 512, 768 and 1024",
        (20, 1.0, "simple"),
        "20 steps: ai-toolkit's file; CFG 1, as the model is distilled for guidance",
        notes=(
            "FLUX.1 dev. For schnell wire a training adapter into Train LoRA, see its help page.",
            "20 GB of weights and more: see Memory on the help page of Train LoRA.",
        ),
    ),
    "Z-Image": Family(
        parts("z_image_bf16.safetensors", one_clip("qwen_3_4b.safetensors", "lumina2"), "ae.safetensors"),
        {
            "subject": Values(
                32, 1e-4, 500, 1, f"{DIFFUSERS}/README_z_image.md", 4, rank_source=f"{MUSUBI}/zimage.md, 32"
            ),
            "style": Values(
                32, 1e-4, 4000, 2, f"rate: {MUSUBI}/zimage.md; steps: {SEEN}", rank_source="the same file, 32"
            ),
            "concept": Values(
                16,
                3e-4,
                2000,
                2,
                f"{ONE_TRAINER}/#z-image LoRA 16GB.json; steps: {HELP}, 80 times each of 50 pictures",
                rank_source="OneTrainer's default, 16",
            ),
        },
        1024,
        f"{DIFFUSERS}/README_z_image.md, 1024; OneTrainer's preset has 512",
        (30, 5.0, "simple"),
        "CFG 5: diffusers' README_z_image.md, which draws in 50 steps",
        notes=(
            "The base model, as musubi-tuner and diffusers train. For Turbo wire its training adapter into Train LoRA, "
            "see its help page.",
        ),
    ),
    "Qwen-Image": Family(
        parts(
            "qwen_image_bf16.safetensors",
            one_clip("qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image"),
            "qwen_image_vae.safetensors",
        ),
        {
            "subject": Values(
                16,
                2e-4,
                500,
                1,
                f"{DIFFUSERS}/README_qwen.md",
                4,
                rank_source=f"{AI_TOOLKIT}/train_lora_qwen_image_24gb.yaml, 16",
            ),
            "style": Values(
                16,
                1e-4,
                2000,
                1,
                f"{AI_TOOLKIT}/train_lora_qwen_image_24gb.yaml",
                dropout=0.05,
                rank_source="the same file, 16",
            ),
            "concept": Values(
                16,
                5e-5,
                2000,
                2,
                f"rate: {MUSUBI}/qwen_image.md; batch: {ONE_TRAINER}/QwenImage/#qwen LoRA 16GB.json; steps: {HELP}, 80 "
                "times each of 50 pictures",
                rank_source="musubi-tuner's file, 16",
            ),
        },
        1024,
        f"{DIFFUSERS}/README_qwen.md, 1024",
        (25, 3.0, "simple"),
        "ai-toolkit's file",
        notes=("40 GB of weights in bf16: see Memory on the help page of Train LoRA.",),
    ),
    "Wan": Family(
        parts(
            "wan2.1_t2v_14B_fp16.safetensors",
            one_clip("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan"),
            "wan_2.1_vae.safetensors",
        ),
        {
            goal: Values(
                32,
                1e-4,
                2000,
                1,
                f"{AI_TOOLKIT}/train_lora_wan21_14b_24gb.yaml, which is for all goals alike",
                dropout=0.05,
                rank_source="the same file, 32",
                **WAN_CLIPS if goal == MOTION else WAN_PICTURES,
            )
            for goal in (*GOALS, MOTION)
        },
        640,
        f"{AI_TOOLKIT}/train_lora_wan21_14b_24gb.yaml, 632",
        (30, 5.0, "simple"),
        "ai-toolkit's file",
        notes=(
            "Of Wan 2.2 train each of the two experts with a recipe of its own; the trainer keeps to its part of the "
            "schedule by the file's name.",
            f"{MUSUBI}/wan.md has a rate of 2e-4.",
        ),
    ),
}


def note(name: str, goal: str, has_search: bool) -> str:
    """The note of a blueprint: where each value comes from, and what was tried."""
    family, values = FAMILIES[name], FAMILIES[name].goals[goal]
    searched = (
        "**learning_rate** is measured by *Find Learning Rate*, from a twentieth of the published rate to five times "
        "it: the published one is for both factors of a LoRA alike, and here the factor that starts at zero learns 16 "
        "times as fast."
        if has_search
        else "**learning_rate** is the published one. It is for both factors of a LoRA alike; here the factor that "
        "starts at zero learns 16 times as fast, so look at the curve."
    )
    lines = [
        f"# {name}, {goal}",
        ADVICE[goal],
        "",
        f"**{family.tried}**",
        "",
        "| value | from |",
        "|---|---|",
        f"| learning rate {values.rate:g}, {values.steps} steps of {values.batch}"
        f"{f' x {values.accumulation}' if values.accumulation > 1 else ''} | published by {values.source} |",
        f"| rank and alpha {values.rank} | {values.rank_source} |",
        f"| resolution {family.resolution} | {family.resolution_source} |",
        *(
            [f"| clips of {values.frames} frames, {values.fps:g} a second | {values.frames_source} |"]
            * bool(values.frames)
        ),
        f"| targets {TARGETS[goal]} | {HELP} |",
        *([f"| caption_dropout {values.dropout:g} | the same file as the rate |"] if values.dropout else []),
        f"| validation {HELD_OUT[goal]} | this pack: it says when to stop |",
        f"| samples in {family.sampling[0]} steps at CFG {family.sampling[1]:g} | {family.shown} |",
        "",
        searched,
        "",
        "With fewer than ten pictures **validation** trains up to three more times to find the best step, which takes "
        "up to four times as long. 0 switches it off.",
        *values.notes,
        *family.notes,
    ]
    return "\n".join(lines)


def make(blueprint: Callable, info: dict, name: str, goal: str):
    """The blueprint of a family and a goal. blueprint: `build_subgraphs.Blueprint`."""
    family, values = FAMILIES[name], FAMILIES[name].goals[goal]
    b = blueprint(
        info,
        f"{PREFIX}{name}, {goal}",
        f"Trains a LoRA of a {goal} on {name}: a folder of {'films' if values.frames else 'pictures'} in; a file in "
        "the loras folder and a grid of steps and strengths out. The note inside says where each value comes from. "
        + ("" if "Run here" in family.tried else "Not tried here."),
        f"Bespoke/recipes/{name}",
    )
    b.column(420)
    b.note(note(name, goal, FIND_RATE in info), 620)
    b.column()
    wires = _load(b, family)
    given = dict(folder="(no folder yet)", resolution=family.resolution)
    if values.frames:
        folder = b.node("BespokeClipFolder", frames=values.frames, fps=values.fps, **given)
    else:
        folder = b.node("BespokeImageFolder", **given)
    settings = {
        **wires,
        "images": (folder, "images"),
        "targets": TARGETS[goal],
        "rank": values.rank,
        "alpha": float(values.rank),
        "steps": values.steps,
        "batch_size": values.batch,
        "gradient_accumulation": values.accumulation,
        "caption_dropout": values.dropout,
        "validation": HELD_OUT[goal],
        "gradient_checkpointing": family.saves_memory,
    }
    b.column()
    rate, searches = values.rate, []
    if FIND_RATE in info:
        searches = [
            b.node(
                FIND_RATE, lowest=float(f"{values.rate / 20:.2g}"), highest=float(f"{values.rate * 5:.2g}"), **settings
            )
        ]
        rate = (searches[0], "learning_rate")
        b.column()
    quarter = values.steps // 4
    trainer = b.node("BespokeTrainLora", learning_rate=rate, save_every=quarter, sample_every=quarter, **settings)
    b.column()
    saved = b.node("BespokeSaveLora", lora=(trainer, "lora"), run=(trainer, "run"))
    steps, cfg, scheduler = family.sampling
    sweep = b.node(
        "BespokeLoraSweep",
        **wires,
        run=(trainer, "run"),
        steps=steps,
        cfg=cfg,
        sampler_name="euler",
        scheduler=scheduler,
        width=family.resolution,
        height=family.resolution,
    )
    b.entry("folder", (folder, "folder"))
    b.entry("trigger", (folder, "trigger"))
    b.entry("prompt", (trainer, "sample_prompt"), (sweep, "prompts"))
    for widget in ("rank", "alpha", "steps", "validation", "seed"):
        b.entry(widget, (trainer, widget), *((node, widget) for node in searches))
    b.entry("filename_prefix", (saved, "filename_prefix"))
    b.exit("model", trainer, "model")
    b.exit("clip", trainer, "clip")
    b.exit("lora_name", saved, "lora_name")
    b.exit("grid", sweep, "grid")
    b.exit("preview", folder, "preview")
    for search in searches:
        b.exit("rate_plot", search, "plot")
        b.exit("rate_report", search, "report")
    b.exit("report", trainer, "report")
    b.exit("run", trainer, "run")
    return b


def _load(b, family: Family) -> dict[str, tuple[dict, str]]:
    """Place the loaders and put their files on the outer node; gives {"model", "clip", "vae": (node, output)}."""
    wires = {}
    for loader in family.loaders:
        node = b.node(loader.kind, **loader.values)
        wires |= {name: (node, output) for name, output in loader.gives.items()}
        for widget in loader.values:
            if widget.endswith(("_name", "_name1", "_name2")):
                b.entry(widget, (node, widget))
    return wires

"""Writes the example workflows for an SD1.5 checkpoint; `small_values.py` has the small model's values.

    python tests/demo/build_workflows.py

Run it again after a change of a node's inputs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "server"))

import host
from canvas import Workflow

OUT = host.ROOT / "example_workflows"
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
EDIT_CHECKPOINT = "instruct-pix2pix-00-22000.safetensors"
# For a style with some tens of pictures; a subject with 5 to 20 needs fewer steps and a lower rank.
STYLE_TRAINING = {"rank": 16, "alpha": 16.0, "learning_rate": 5e-5, "steps": 750}
SLIDER_TRAINING = {"sample_every": 50}
PAIRS_TRAINING = {"more": "", "less": "", "loss_weighting": "debiased", "timestep_sampling": "shifted"}
SUBJECT_TRAINING = {"learning_rate": 1e-4, "steps": 400}
BRING = (
    "*The picture* is the drawing that comes with ComfyUI. Choose your own there: 512 to 768 px a side for SD1.5, as "
    "nothing scales it down."
)
FIRST_TRAIN = "press R to refresh the lists, and choose the files that they saved in the loaders."
PLOT_WIDTH = 660  # px: a plot on it can be read, see nodes/bridge/drawing/shown.py
PICTURE = "example.png"  # comes with ComfyUI, 768 x 768
NO_FOLDER, NO_LORA = "(no folder yet)", "none"  # choices that every host has
CHOOSE_FOLDER = "and choose it in *folder*, or drop the folder on that node"
STRENGTH_OF_A_BORDER = 0.8  # where a border joins best: see tests/bench/bench_outpaint.py
SAMPLING = {"seed": 3, "steps": 25, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}


# --- parts of most graphs ----------------------------------------------------------------------------------------


class Base:
    """A checkpoint's three outputs, and the prompts, latents and pictures made with them."""

    def __init__(self, w: Workflow, title: str = "Base model", checkpoint: str = CHECKPOINT):
        self.w, self.loader = w, w.node("CheckpointLoaderSimple", title, ckpt_name=checkpoint)
        self.model, self.clip, self.vae = ((self.loader, kind) for kind in ("MODEL", "CLIP", "VAE"))

    def prompt(self, text: str | tuple, title: str = "Prompt", clip=None) -> tuple:
        return self.w.node("CLIPTextEncode", title, 120, clip=clip or self.clip, text=text), "CONDITIONING"

    def nothing(self) -> tuple:
        return self.prompt("", "Negative prompt")

    def empty(self, count: int = 4) -> tuple:
        return self.w.node("EmptyLatentImage", width=512, height=512, batch_size=count), "LATENT"

    def encode(self, picture) -> tuple:
        return self.encode_image((picture, "IMAGE"))

    def encode_image(self, image: tuple) -> tuple:
        return self.w.node("VAEEncode", pixels=image, vae=self.vae), "LATENT"

    def sample(self, title: str, positive, negative, latent, model=None, kind: str = "KSampler", **values) -> tuple:
        node = self.w.node(
            kind,
            title,
            model=model or self.model,
            positive=positive,
            negative=negative,
            latent_image=latent,
            **(SAMPLING | values),
        )
        return node, "latent" if kind.startswith("Bespoke") else "LATENT"

    def decode(self, latent) -> tuple:
        return self.w.node("VAEDecode", samples=latent, vae=self.vae), "IMAGE"

    def show(self, title: str, latent, file: str) -> tuple:
        """Decode and save; returns the IMAGE."""
        image = self.decode(latent)
        self.w.node("SaveImage", title, 300, images=image, filename_prefix=f"bespoke/{file}")
        return image


def report(w: Workflow, node, height: int = 190) -> None:
    w.node("PreviewAny", "Report", height, source=(node, "report"))


def learn(w: Workflow, base: Base, kind: str, title: str, folder_values=(), **values):
    """A folder of pictures, its contact sheet and a trainer of `kind`."""
    pictures = w.node("BespokeImageFolder", title, folder=NO_FOLDER, **dict(folder_values))
    w.column()
    trainer = w.node(kind, model=base.model, clip=base.clip, vae=base.vae, images=(pictures, "images"), **values)
    w.column()
    w.node("PreviewImage", "The training set", 300, images=(pictures, "preview"))
    return trainer


# --- LoRA ---------------------------------------------------------------------------------------------------------


def getting_started(w: Workflow) -> None:
    """The tour: one graph in four groups, for SD1.5 and SDXL by one number."""
    w.column()
    w.group("1  Your pictures", "plain")
    w.note(
        "**A tour in four parts: your pictures, train, look, use it.**\n\n1. Choose your checkpoint in *Base model*: "
        "SD1.5 or SDXL.\n2. *Size* is 512 for SD1.5 and 1024 for SDXL. Training and pictures both use it.\n3. Put 10 "
        "or more pictures of one style into a folder under *input*, each with a .txt caption of the same name. Press "
        f"R {CHOOSE_FOLDER}.\n4. *trigger* is put before every caption. Write the same words in the prompts on the "
        "right.\n5. Queue.",
        290,
    )
    base = Base(w)
    size = w.node("PrimitiveInt", "Size", value=512), "INT"
    pictures = w.node("BespokeImageFolder", "Your pictures", folder=NO_FOLDER, trigger="my style", resolution=size)
    w.column(400)
    w.group("2  Train", "learn")
    w.note(
        "**The training.** The trainer shows the loss and the time left while it runs. *Finish and keep* stops early "
        "and keeps what was learned.\n\nThe values are for about 30 pictures. Fewer pictures need fewer *steps*. If "
        "memory runs out, set *batch_size* to 1.",
        190,
    )
    trainer = w.node(
        "BespokeTrainLora",
        model=base.model,
        clip=base.clip,
        vae=base.vae,
        images=(pictures, "images"),
        **STYLE_TRAINING,
    )
    w.column()
    w.group("3  Look: the same seeds without and with it", "use")
    w.note(
        "**Did it learn?** Above without the LoRA, below with it, the same seeds. *Evidence card* on the trainer says "
        "which step to use and what to change next. The tab *Runs* (key b) lists every run.",
        130,
    )
    words, nothing = base.prompt("a lighthouse on a cliff, in my style"), base.nothing()
    latent = w.node("EmptyLatentImage", width=size, height=size, batch_size=2), "LATENT"
    report(w, trainer, 200)
    w.column()
    low = base.decode(base.sample("without the LoRA", words, nothing, latent))
    high = base.decode(base.sample("with the LoRA", words, nothing, latent, (trainer, "model")))
    compared = w.node("BespokeCompare", images=[low, high], labels="without the LoRA\nwith the LoRA")
    w.column(420)
    w.node("SaveImage", "without and with", 620, images=(compared, "image"), filename_prefix="bespoke/tour_look")
    w.column()
    w.group("4  Use it: the saved file and a prompt of yours", "use")
    w.note(
        "**Use it.** The LoRA is saved, and this part reads the file, as any graph can. *strength_model* says how "
        "strongly it acts: 0.5 is half. ComfyUI's own LoRA loader reads the file too.\n\nNow write a prompt and "
        "queue again: the training is not repeated.",
        170,
    )
    saved = w.node("BespokeSaveLora", lora=(trainer, "lora"), run=(trainer, "run"), filename_prefix="bespoke/first")
    adapted = w.node(
        "BespokeInjectLora", "The saved file", model=base.model, lora_name=NO_LORA, name=(saved, "lora_name")
    )
    mine = base.prompt("a bowl of fruit on a table, in my style", "Your prompt")
    w.column()
    made = base.sample("Your picture", mine, nothing, latent, (adapted, "model"), seed=11)
    base.show("your picture", made, "tour_use")


def lora_style(w: Workflow) -> None:
    w.column()
    w.group("1  Learn from pictures", "learn")
    w.note(
        "**Train a LoRA on a style, and use it in the same queue.**\n\n1. Put 20 to 200 pictures with a .txt caption "
        f"each into a folder under *input*, press R {CHOOSE_FOLDER}.\n2. *trigger* is put before every caption; write "
        "the same words in the prompt.\n3. *steps*: about pictures x 100 / batch_size (30 pictures: 750).\n4. Queue. "
        "The panel on the trainer shows the loss and the time left. The right side then draws the same seeds without "
        "and with the LoRA, and the file lands in the loras folder.\n\nQueue again with another prompt: the training "
        "is not repeated. In another graph, ComfyUI's own LoRA loader loads the file.",
        330,
    )
    base = Base(w)
    trainer = learn(w, base, "BespokeTrainLora", "Pictures of the style", {"trigger": "my style"}, **STYLE_TRAINING)
    w.node("BespokeSaveLora", lora=(trainer, "lora"), run=(trainer, "run"), filename_prefix="bespoke/my-style")
    report(w, trainer, 160)
    w.column()
    w.group("2  Use it: the same seeds without and with the LoRA", "use")
    adapted = w.node("BespokeInjectLora", "Use the LoRA", model=base.model, lora=(trainer, "lora"))
    words, nothing, latent = base.prompt("a lighthouse on a cliff, in my style"), base.nothing(), base.empty()
    w.column()
    low = base.sample("without the LoRA", words, nothing, latent)
    high = base.sample("with the LoRA", words, nothing, latent, (adapted, "model"))
    w.column()
    base.show("without the LoRA", low, "lora_base")
    base.show("with the LoRA", high, "lora_lora")


def lora_subject(w: Workflow) -> None:
    w.column()
    w.group("1  Learn a subject, and keep its class", "learn")
    w.note(
        "**Train a LoRA on one subject.** Take 5 to 20 pictures of it, each from another side or in another place. "
        "*trigger* is put before every caption.\n\nThe second folder holds pictures of its *class* (any dog, if yours "
        'is a dog): they keep the model from turning every dog into yours (prior preservation). Replace "dog" by '
        "your class in *template*, *trigger* and the prompts.\n\nThe trainer's own *model* output is used on the "
        "right, so that one queue does it all.",
        300,
    )
    base = Base(w)
    classes = w.node(
        "BespokeImageFolder", "The class", folder=NO_FOLDER, captions="template", template="a photo of a dog"
    )
    trainer = learn(
        w,
        base,
        "BespokeTrainLora",
        "Pictures of the subject",
        {"trigger": "sks dog"},
        prior_images=(classes, "images"),
        prior_weight=0.5,
        **SUBJECT_TRAINING,
    )
    w.node("BespokeSaveLora", lora=(trainer, "lora"), run=(trainer, "run"), filename_prefix="bespoke/my-subject")
    report(w, trainer, 160)
    w.column()
    w.group("2  The subject, and its class kept", "use")
    nothing, latent = base.nothing(), base.empty()
    subject = base.prompt("a photo of sks dog on a beach", "The subject")
    kept = base.prompt("a photo of a dog on a beach", "Its class")
    w.column()
    made = [
        base.sample("the subject, without the LoRA", subject, nothing, latent),
        base.sample("the subject, with the LoRA", subject, nothing, latent, (trainer, "model")),
        base.sample("its class, with the LoRA", kept, nothing, latent, (trainer, "model")),
    ]
    w.column()
    for title, one in zip(
        ("the subject, without the LoRA", "the subject, with the LoRA", "its class, with the LoRA"), made, strict=True
    ):
        base.show(title, one, "subject")


def slider_from_words(w: Workflow) -> None:
    w.column()
    w.group("1  Learn a direction from words", "learn")
    w.note(
        "**Train a slider without pictures.** *target* is what changes, *more* and *less* are its two ends. The "
        "model's own predictions at the three prompts say which way to go.\n\n1. Write the three prompts. Lines of "
        "*preserve* stay as they are.\n2. Queue. Each sample is one seed at -2, -1, 0, 1 and 2.\n3. The report says "
        "up to which strength the slider is useful; *Inject LoRA* says it of the file too.\n\nThe file is an "
        "ordinary LoRA: its strength in any loader is the slider.",
        300,
    )
    base = Base(w)
    w.column()
    trainer = w.node("BespokeTrainSlider", model=base.model, clip=base.clip, vae=base.vae, **SLIDER_TRAINING)
    w.column()
    w.node("BespokeSaveLora", lora=(trainer, "lora"), run=(trainer, "run"), filename_prefix="bespoke/my-slider")
    report(w, trainer, 260)
    use_slider(w, base, trainer, "a photo of a person in a park", "slider")


def slider_from_pairs(w: Workflow) -> None:
    w.column()
    w.group("1  Learn a direction from pairs of pictures", "learn")
    w.note(
        "**Train a slider on pairs.** Two folders: each picture of the one is there in the other too, under the same "
        f"name, with one thing changed. 4 to 10 pairs; press R {CHOOSE_FOLDER}.\n\n*target* is the prompt of all "
        "pictures, so they need no captions. Strength 1 is towards *With more of it*, -1 towards *With less of "
        "it*.\n\n*debiased* and *shifted* give more weight to high noise levels, which decide on size, pose and "
        "composition. For a change of texture or colour set them back to *none* and *uniform*.",
        300,
    )
    base = Base(w)
    more = w.node("BespokeImageFolder", "With more of it", folder=NO_FOLDER)
    less = w.node("BespokeImageFolder", "With less of it", folder=NO_FOLDER)
    w.column()
    trainer = w.node(
        "BespokeTrainSlider",
        model=base.model,
        clip=base.clip,
        vae=base.vae,
        positive_images=(more, "images"),
        negative_images=(less, "images"),
        **(SLIDER_TRAINING | PAIRS_TRAINING),
    )
    w.column()
    w.node("BespokeSaveLora", lora=(trainer, "lora"), run=(trainer, "run"), filename_prefix="bespoke/my-slider")
    report(w, trainer, 260)
    use_slider(w, base, trainer, "a photo of a person in a park", "slider_pairs")


def use_slider(w: Workflow, base: Base, trainer, prompt: str, file: str) -> None:
    """The same seeds at -1, 0 and 1."""
    w.column()
    w.group("2  The same seeds at -1, 0 and 1", "use")
    words, nothing, latent = base.prompt(prompt), base.nothing(), base.empty(2)
    models = [
        w.node(
            "BespokeInjectLora", f"Strength {strength}", model=base.model, lora=(trainer, "lora"), strength_model=value
        )
        for strength, value in (("-1", -1.0), ("1", 1.0))
    ]
    w.column()
    made = [
        base.sample(title, words, nothing, latent, model)
        for title, model in (("at -1", (models[0], "model")), ("without", base.model), ("at 1", (models[1], "model")))
    ]
    w.column()
    for title, one in zip(("at -1", "without", "at 1"), made, strict=True):
        base.show(title, one, file)


def edit_from_pairs(w: Workflow) -> None:
    w.column()
    w.group("1  Learn an edit from pairs", "learn")
    w.note(
        "**Teach an edit model one kind of change.** 12 or more pairs: the picture before, and the same picture "
        "after the change.\n\n1. Put both into one folder under *input*: `a.png` is the result, `a-control.png` the "
        f"source, `a.txt` the instruction. Press R {CHOOSE_FOLDER}. *pairs*, among its advanced inputs, is on. Two "
        "folders become pairs with *Pair Image Sets*.\n2. The sheet shows each source with an arrow to its "
        "result.\n3. Queue. The right side edits a picture that is not in the set, without and with the "
        "LoRA.\n\nThis is instruct-pix2pix for SD1.5. For **Flux Kontext**, **Flux 2** and **OmniGen 2** load that "
        "model, and put VAE Encode and *ReferenceLatent* in the place of *InstructPixToPixConditioning*; for "
        "**Qwen-Image-Edit** *TextEncodeQwenImageEditPlus*. The training stays as it is.",
        400,
    )
    base = Base(w, "Edit model", EDIT_CHECKPOINT)
    trainer = learn(w, base, "BespokeTrainLora", "Pairs", {"pairs": True}, **SUBJECT_TRAINING)
    w.node("BespokeSaveLora", lora=(trainer, "lora"), run=(trainer, "run"), filename_prefix="bespoke/my-edit")
    report(w, trainer, 160)
    w.column()
    w.group("2  Edit another picture, without and with the LoRA", "use")
    w.note(BRING, 110)
    picture = w.node("LoadImage", "The picture", 300, image=PICTURE)
    words, nothing = base.prompt("make it a watercolor painting", "Instruction"), base.nothing()
    given = w.node(
        "InstructPixToPixConditioning", positive=words, negative=nothing, vae=base.vae, pixels=(picture, "IMAGE")
    )
    w.column()
    told = [(given, name) for name in ("positive", "negative", "latent")]
    plain = base.sample("without the LoRA", *told)
    edited = base.sample("with the LoRA", *told, (trainer, "model"))
    w.column()
    base.show("without the LoRA", plain, "edit_base")
    base.show("with the LoRA", edited, "edit_lora")


def lora_compose(w: Workflow) -> None:
    w.column()
    w.group("Two LoRAs become one", "use")
    w.note(
        "**Add two LoRAs into one.** *rank* 0 gives the exact sum, whose rank is the sum of both; a smaller rank "
        "gives a smaller file, and the report says how much is kept. The heatmap shows where the two change the "
        "weights in the same direction (orange) or in opposite ones (blue).\n\nFirst run *lora_train_and_use* and "
        f"*lora_subject*; then {FIRST_TRAIN}"
    )
    base = Base(w)
    loaded = [w.node("BespokeLoadLora", title, lora_name=NO_LORA) for title in ("The style", "The subject")]
    w.column()
    both = w.node("BespokeComposeLoras", loras=[(one, "lora") for one in loaded], strengths="0.8\n0.8")
    report(w, both)
    w.node("BespokeSaveLora", lora=(both, "lora"), filename_prefix="bespoke/style-and-subject")
    w.column(PLOT_WIDTH)
    w.node("PreviewImage", "Where they meet", 700, images=(both, "heatmap"))
    w.column()
    words, nothing, latent = base.prompt("a photo of sks dog on a beach, in my style"), base.nothing(), base.empty(2)
    models = [
        w.node("BespokeInjectLora", title, model=base.model, lora=(source, "lora"))
        for title, source in (("The style alone", loaded[0]), ("The subject alone", loaded[1]), ("Both", both))
    ]
    w.column()
    titles = ("the style alone", "the subject alone", "both composed")
    made = [
        base.sample(title, words, nothing, latent, (model, "model"))
        for title, model in zip(titles, models, strict=True)
    ]
    w.column()
    for title, one in zip(titles, made, strict=True):
        base.show(title, one, "composed")


def lora_checkpoint(w: Workflow) -> None:
    w.column()
    w.group("A LoRA becomes part of a checkpoint", "use")
    w.note(
        "**Merge a LoRA into a checkpoint.** *Inject LoRA* in mode *merge* adds it to the weights, and ComfyUI's own "
        "*Save Checkpoint* writes them as they are then, bit for bit, with the text encoder's part. The file lands "
        "in *output/checkpoints*: move it into *models/checkpoints*, press R, and *Load Checkpoint* draws the same "
        "pictures as the right side does now, without a LoRA loader. The second file is the LoRA alone, at these "
        f"strengths.\n\nFirst run *lora_train_and_use*; then {FIRST_TRAIN}",
        250,
    )
    base = Base(w)
    loaded = w.node("BespokeLoadLora", "The style", lora_name=NO_LORA)
    w.column()
    merged = w.node(
        "BespokeInjectLora",
        "Merged into the weights",
        model=base.model,
        clip=base.clip,
        lora=(loaded, "lora"),
        strength_model=0.8,
        strength_clip=0.8,
    )
    report(w, merged)
    w.node(
        "CheckpointSave",
        model=(merged, "model"),
        clip=(merged, "clip"),
        vae=base.vae,
        filename_prefix="checkpoints/with-my-style",
    )
    w.node("BespokeSaveLora", lora=(merged, "lora"), filename_prefix="bespoke/my-style-at-0.8")
    w.column()
    text = "a lighthouse on a cliff, in my style"
    words, nothing, latent = base.prompt(text, clip=(merged, "clip")), base.nothing(), base.empty(2)
    plain = base.prompt(text, "Prompt for the base")
    w.column()
    made = {
        "the base": base.sample("the base", plain, nothing, latent),
        "what the checkpoint draws": base.sample(
            "what the checkpoint draws", words, nothing, latent, (merged, "model")
        ),
    }
    w.column()
    for title, one in made.items():
        base.show(title, one, "merged")


def lora_inspect(w: Workflow) -> None:
    w.column()
    w.group("1  What is in the file", "plain")
    w.note(
        "**Inspect a LoRA, then use only a part of it.** The heatmap says which blocks and projections it changes "
        "most. Query and key decide *where* a word acts, value and out *what* it adds there. The blocks in the "
        "middle mostly decide on composition, the outer ones on texture. Start and end limit it to a part of the "
        f"denoising.\n\nFirst run *lora_train_and_use*; then {FIRST_TRAIN}",
        260,
    )
    base = Base(w)
    loaded = w.node("BespokeLoadLora", "The style", lora_name=NO_LORA)
    seen = w.node("BespokeInspectLora", lora=(loaded, "lora"), model=base.model)
    report(w, seen, 260)
    w.column(PLOT_WIDTH)
    w.node("PreviewImage", "How much it changes, by block and projection", 900, images=(seen, "heatmap"))
    w.column()
    w.group("2  Scoped", "use")
    words, nothing, latent = base.prompt("a lighthouse on a cliff, in my style"), base.nothing(), base.empty(2)
    scopes = {
        "all of it": {},
        "value and out only": {"query": 0.0, "key": 0.0},
        "the up blocks only": {"blocks": "up.*"},
        "from the middle of the denoising on": {"start_percent": 0.5},
    }
    models = [
        w.node("BespokeInjectLora", title, model=base.model, lora=(loaded, "lora"), **values)
        for title, values in scopes.items()
    ]
    w.column()
    made = [
        base.sample(title, words, nothing, latent, (model, "model"))
        for title, model in zip(scopes, models, strict=True)
    ]
    w.column()
    for title, one in zip(scopes, made, strict=True):
        base.show(title, one, "scoped")


# --- partial denoise ----------------------------------------------------------------------------------------------


def strength_ladder(w: Workflow) -> None:
    w.column()
    w.group("One picture, five strengths", "use")
    w.note(
        "**Partial denoise (img2img).** The picture is encoded, noised up to the strength, and denoised from there "
        "with the new prompt. At strength 0 it comes back as it was, at 1 nothing of it is left.\n\nEach node's "
        f"report says how many steps run and how much of the start is noise. {BRING}",
        230,
    )
    base = Base(w)
    picture = w.node("LoadImage", "The picture", 330, image=PICTURE)
    w.column()
    latent = base.encode(picture)
    words, nothing = base.prompt("the same scene in winter, snow"), base.nothing()
    for value in (0.0, 0.5, 0.7, 0.85, 1.0):
        w.column(280)
        title = f"strength {value:g}"
        made = base.sample(title, words, nothing, latent, kind="BespokePartialDenoise", strength=value)
        base.show(title, made, f"strength_{value:g}")
        report(w, made[0], 120)


def few_steps(w: Workflow) -> None:
    w.column()
    w.group("Image to image in four steps", "use")
    w.note(
        "**Image to image with a few-step model.** Choose a few-step checkpoint in *Base model* (Turbo, LCM, Hyper), "
        "with the sampler and scheduler that it asks for. With four steps diffusers' *strength* has only four steps "
        "to start from, so several strengths give the same picture; ComfyUI's *denoise* has the same limit. The "
        "contract *noise level* starts exactly at the noise that the strength means, with a shorter first "
        "step.\n\nRight: the same two strengths in two contracts, and the schedule as SIGMAS for "
        f"*SamplerCustomAdvanced*. {BRING}",
        300,
    )
    base = Base(w)
    picture = w.node("LoadImage", "The picture", 330, image=PICTURE)
    w.column()
    latent = base.encode(picture)
    words, nothing = base.prompt("the same scene in winter, snow"), base.nothing()
    sigmas = w.node(
        "BespokeStrengthSigmas",
        "Four steps at strength .7",
        model=base.model,
        scheduler="sgm_uniform",
        steps=4,
        strength=0.7,
    )
    w.column(PLOT_WIDTH)
    w.node("PreviewImage", "The schedule", 460, images=(sigmas, "plot"))
    for contract in ("noise level", "diffusers"):
        w.column(280)
        for strength in (0.6, 0.7):
            title = f"{contract}, {strength:g}"
            made = base.sample(
                title,
                words,
                nothing,
                latent,
                kind="BespokePartialDenoise",
                strength=strength,
                steps=4,
                cfg=1.5,
                sampler_name="euler",
                scheduler="sgm_uniform",
                contract=contract,
            )
            base.show(title, made, "few_steps")
    w.column()
    noise = w.node("RandomNoise", noise_seed=3)
    guider = w.node("CFGGuider", model=base.model, positive=words, negative=nothing, cfg=1.5)
    sampler = w.node("KSamplerSelect", sampler_name="euler")
    custom = w.node(
        "SamplerCustomAdvanced",
        noise=(noise, "NOISE"),
        guider=(guider, "GUIDER"),
        sampler=(sampler, "SAMPLER"),
        sigmas=(sigmas, "sigmas"),
        latent_image=latent,
    )
    base.show("noise level, 0.7, by its sigmas", (custom, "output"), "few_steps_custom")


# --- inpainting ---------------------------------------------------------------------------------------------------


def masked(w: Workflow, note: str, title: str, prompt: str, **blend):
    """A picture, a mask and a model that repaints under it: (base, picture, blend, prompts)."""
    w.column()
    w.group(title, "use")
    w.note(
        f"{note}\n\n{BRING} The mask here is a rectangle: white may change. To paint one instead, right click *The "
        "picture*, *Open in MaskEditor*, and wire its MASK into the blend.",
        330,
    )
    base = Base(w)
    picture = w.node("LoadImage", "The picture", 330, image=PICTURE)
    black = w.node("SolidMask", "Black, the size of the picture", value=0.0, width=768, height=768)
    white = w.node("SolidMask", "White, what may change", value=1.0, width=192, height=192)
    mask = w.node(
        "MaskComposite",
        "The mask",
        destination=(black, "MASK"),
        source=(white, "MASK"),
        x=16,
        y=152,
        operation="add",
    )
    w.column()
    latent = base.encode(picture)
    words, nothing = base.prompt(prompt), base.nothing()
    blended = w.node(
        "BespokeLatentMaskBlend", "Blend: what it sees", model=base.model, latent=latent, mask=(mask, "MASK"), **blend
    )
    w.column()
    return base, picture, blended, words, nothing


def restored(w: Workflow, base: Base, picture, blended, latent, title: str, file: str, **crop):
    image = base.decode(latent)
    node = w.node(
        "BespokeRestoreUnmasked", generated=image, original=(picture, "IMAGE"), mask=(blended, "latent_mask"), **crop
    )
    report(w, node)
    w.column()
    w.node("SaveImage", "the original", 280, images=(picture, "IMAGE"), filename_prefix=f"bespoke/{file}_original")
    w.node("SaveImage", title, 280, images=(node, "image"), filename_prefix=f"bespoke/{file}_result")


def inpaint_region(w: Workflow) -> None:
    base, picture, blended, words, nothing = masked(
        w,
        "**Latent mask blend (inpainting).** No other model is needed: at every step the mask says which latents are "
        "repainted and which are kept from the original. White may change, black stays. *Restore Unmasked* then "
        "pastes the original's pixels back outside and counts what differs there: nothing.",
        "Repaint one region with the same model",
        "a red balloon in the sky",
    )
    made = base.sample("Repaint", words, nothing, (blended, "latent"), (blended, "model"))
    restored(w, base, picture, blended, made, "repainted under the mask", "inpaint")


def boxes(w: Workflow, side: int, places: dict[str, tuple[int, int]]) -> tuple:
    """A mask of the picture's size with white squares of `side` px at places (x, y), by the titles of their nodes."""
    w.column()
    mask = w.node("SolidMask", "Black, the size of the picture", value=0.0, width=768, height=768), "MASK"
    white = w.node("SolidMask", "White, what may change", value=1.0, width=side, height=side), "MASK"
    for title, (x, y) in places.items():
        mask = w.node("MaskComposite", title, destination=mask, source=white, x=x, y=y, operation="add"), "MASK"
    return mask


def repaint_crops(w: Workflow, base: Base, picture, mask, prompt: str, result: tuple[str, str], denoise: float, **crop):
    """The crops around a mask, repainted and put back. result: (title, file)."""
    w.column()
    cut = w.node("BespokeCropToMask", image=(picture, "IMAGE"), mask=mask, vae=base.vae, resolution=512, **crop)
    report(w, cut)
    w.column()
    latent = w.node("VAEEncode", pixels=(cut, "image"), vae=base.vae), "LATENT"
    blended = w.node(
        "BespokeLatentMaskBlend", "Blend: what it sees", model=base.model, latent=latent, mask=(cut, "mask")
    )
    words, nothing = base.prompt(prompt), base.nothing()
    w.column()
    made = base.sample("Repaint the crops", words, nothing, (blended, "latent"), (blended, "model"), denoise=denoise)
    restored(w, base, picture, blended, made, *result, crop=(cut, "crop"))


def inpaint_only_masked(w: Workflow) -> None:
    w.column()
    w.group("Repaint a small place at the model's own resolution", "use")
    w.note(
        "**Only masked.** What is few latent cells wide is drawn badly. *Crop to Mask* cuts the picture around the "
        "mask and scales the crop to 512 px, the size that SD1.5 was trained at (SDXL and Flux: 1024); *Restore "
        "Unmasked* scales it back and lays it where it was, and every pixel outside the mask is the "
        "original's.\n\nThe prompt is for what is in the crop. *context* says how much around the mask the model "
        f"sees.\n\n{BRING} The mask here is a square: white may change. To paint one instead, right click *The "
        "picture*, *Open in MaskEditor*, and wire its MASK into the crop.",
        330,
    )
    base = Base(w)
    picture = w.node("LoadImage", "The picture", 330, image=PICTURE)
    mask = boxes(w, 96, {"The place": (612, 208)})
    result = ("the place repainted", "inpaint_only_masked")
    repaint_crops(w, base, picture, mask, "a red balloon in the sky", result, 1.0)


def fix_many_faces(w: Workflow) -> None:
    w.column()
    w.group("Many small places in one batch", "use")
    w.note(
        "**Many faces at once.** With *each* on, every separate part of the mask is a crop of its own, scaled to the "
        "model's resolution; all are repainted in one batch and put back, each in its place. A *denoise* of .5 keeps "
        "what a face is like and draws it in detail.\n\nThe three boxes stand for what a detector finds. Wire its "
        f"mask into the crop instead: one with all faces, or a batch with one mask for each face.\n\n{BRING}",
        330,
    )
    base = Base(w)
    picture = w.node("LoadImage", "The picture", 330, image=PICTURE)
    mask = boxes(w, 128, {"The first box": (328, 184), "The second box": (64, 40), "The third box": (560, 40)})
    result = ("every place repainted", "fix_many_faces")
    repaint_crops(w, base, picture, mask, "a smiling face", result, 0.5, each=True)


def inpaint_soft(w: Workflow) -> None:
    base, picture, blended, words, nothing = masked(
        w,
        "**Soft inpainting.** With the blend *differential* a grey mask is a strength for each place: white is "
        "repainted wholly, grey only in the last part of the denoising, so it keeps its composition and takes on the "
        "new texture and light. A wide *feather* makes the grey; *bias* above 0 gives the original more of the early "
        "steps.",
        "A mask with soft edges",
        "a red balloon in the sky",
        blend="differential",
        feather=64,
        bias=0.25,
    )
    made = base.sample("Repaint softly", words, nothing, (blended, "latent"), (blended, "model"))
    restored(w, base, picture, blended, made, "repainted softly", "inpaint_soft")


def inpaint_stages(w: Workflow) -> None:
    base, picture, blended, words, nothing = masked(
        w,
        "**Inpainting with two samplers.** The steps are split over two samplers, as for a refiner or a pair of "
        "high- and low-noise models. Wire the blended model into both, and the latent of the first into the second. "
        "Outside the mask the picture is still exactly the original: the blend is part of the model and acts at "
        "every step.",
        "Repaint in two stages",
        "a red balloon in the sky",
    )
    latent = (blended, "latent")
    for title, first, last, more in (("First stage", 0, 12, "enable"), ("Second stage", 12, 10000, "disable")):
        node = w.node(
            "KSamplerAdvanced",
            title,
            model=(blended, "model"),
            positive=words,
            negative=nothing,
            latent_image=latent,
            add_noise="enable" if first == 0 else "disable",
            noise_seed=3,
            steps=25,
            cfg=7.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            start_at_step=first,
            end_at_step=last,
            return_with_leftover_noise=more,
        )
        latent = (node, "LATENT")
    restored(w, base, picture, blended, latent, "repainted in two stages", "inpaint_stages")


def outpaint(w: Workflow) -> None:
    w.column()
    w.group("Make the picture wider", "use")
    w.note(
        "**Outpainting.** *Fill Masked* adds a border on the right, fills it with the colours at the old edge, "
        "carried on smoothly, and gives the mask of it. *Latent Mask Blend* repaints under that mask alone, with a "
        "grey *ramp* into the old picture so that light and style join. *Restore Unmasked* then puts the old picture "
        f"back outside the ramp, exactly.\n\n{BRING} The prompt describes the whole wider picture.",
        330,
    )
    base = Base(w)
    picture = w.node("LoadImage", "The picture", 330, image=PICTURE)
    w.column()
    filled = w.node("BespokeFillMasked", "A new border on the right", image=(picture, "IMAGE"), right=256)
    report(w, filled)
    w.column()
    latent = base.encode_image((filled, "image"))
    words, nothing = base.prompt("a wide valley in the evening sun"), base.nothing()
    blended = w.node(
        "BespokeLatentMaskBlend",
        "Blend: what it sees",
        model=base.model,
        latent=latent,
        mask=(filled, "mask"),
        ramp=64,
    )
    w.column()
    made = base.sample(
        "Paint the border",
        words,
        nothing,
        (blended, "latent"),
        (blended, "model"),
        "BespokePartialDenoise",
        strength=STRENGTH_OF_A_BORDER,
    )
    image = base.decode(made)
    node = w.node("BespokeRestoreUnmasked", generated=image, original=(filled, "image"), mask=(blended, "latent_mask"))
    report(w, node)
    w.column()
    w.node("SaveImage", "the picture", 280, images=(picture, "IMAGE"), filename_prefix="bespoke/outpaint_original")
    w.node("SaveImage", "the filled border", 280, images=(filled, "image"), filename_prefix="bespoke/outpaint_filled")
    w.node("SaveImage", "the wider picture", 280, images=(node, "image"), filename_prefix="bespoke/outpaint_result")


# --- textual inversion --------------------------------------------------------------------------------------------


def sentence(w: Workflow, before: str, word: tuple, after: str) -> tuple:
    """before + word + after, with the spaces that an embedding's name needs."""
    a = w.node("StringConcatenate", string_a=before, string_b=word, delimiter=" ")
    return w.node("StringConcatenate", string_a=(a, "STRING"), string_b=after, delimiter=" "), "STRING"


def textual_inversion(w: Workflow) -> None:
    w.column()
    w.group("1  Learn a word", "learn")
    w.note(
        "**Textual inversion.** A new word is learned as a vector for the text encoder; no weight of any model "
        "changes. Training begins at the word in *init_text*: write there what your pictures show.\n\nPut 3 to 8 "
        f"pictures into a folder under *input* (no captions needed), press R {CHOOSE_FOLDER}. The saved word is wired "
        "into the prompt, so that the prompt waits for the file. Later, type *embedding:my-word* into any prompt. "
        "*overwrite* is on: give a second thing another *name*, in both nodes.",
        280,
    )
    base = Base(w)
    trainer = learn(w, base, "BespokeTrainTextualInversion", "Pictures of the thing", name="my-word", init_text="toy")
    saved = w.node(
        "BespokeSaveEmbedding", embedding=(trainer, "embedding"), run=(trainer, "run"), name="my-word", overwrite=True
    )
    report(w, trainer, 220)
    w.column()
    w.group("2  Say it: the starting word beside the new one, same seeds", "use")
    new = base.prompt(sentence(w, "a photo of a", (saved, "prompt_word"), "on a table"), "The new word")
    old = base.prompt("a photo of a toy on a table", "The starting word")
    nothing, latent = base.nothing(), base.empty()
    w.column()
    made = [base.sample(title, words, nothing, latent) for title, words in (("Starting word", old), ("New word", new))]
    w.column()
    for title, one, file in zip(("the starting word", "the new word"), made, ("before", "after"), strict=True):
        base.show(title, one, f"inversion_{file}")


def word_and_lora(w: Workflow) -> None:
    w.column()
    w.group("1  Learn a word and the LoRA that draws it, in one run", "learn")
    w.note(
        "**A word and a LoRA in one run.** The word names the thing in prompts, the LoRA teaches the model to draw it. "
        "The captions say *{word}* where the new word stands; here the *template* of the folder is every picture's "
        "caption, and with captions of your own write *{word}* into them.\n\nPut 5 to 20 pictures of one thing into "
        f"a folder under *input*, press R {CHOOSE_FOLDER}. Write in *init_text* what they show. The saved file "
        "holds both.",
        290,
    )
    base = Base(w)
    trainer = learn(
        w,
        base,
        "BespokeTrainWordAndLora",
        "Pictures of the thing",
        {"captions": "template", "template": "a photo of a {word}"},
        name="my-word",
        init_text="toy",
        **SUBJECT_TRAINING,
    )
    saved = w.node(
        "BespokeSaveLora",
        lora=(trainer, "lora"),
        run=(trainer, "run"),
        embedding=(trainer, "embedding"),
        filename_prefix="bespoke/my-word",
    )
    report(w, trainer, 220)
    w.column()
    w.group("2  Use the one file: the starting word beside the new one, same seeds", "use")
    used = w.node(
        "BespokeInjectLora",
        "Word and LoRA from the file",
        model=base.model,
        clip=base.clip,
        lora_name=NO_LORA,
        name=(saved, "lora_name"),
    )
    words = sentence(w, "a photo of a", (used, "trigger_words"), "on a table")
    new = base.prompt(words, "The new word", (used, "clip"))
    old = base.prompt("a photo of a toy on a table", "The starting word")
    nothing, latent = base.nothing(), base.empty()
    w.column()
    made = [
        base.sample("Starting word", old, nothing, latent),
        base.sample("New word and LoRA", new, nothing, latent, (used, "model")),
    ]
    w.column()
    for title, one in zip(("the starting word", "the new word and the LoRA"), made, strict=True):
        base.show(title, one, "word_and_lora")


# --- side by side -------------------------------------------------------------------------------------------------


def three_techniques(w: Workflow) -> None:
    w.column()
    w.group("1  One set of pictures", "plain")
    w.note(
        "**The three techniques on the same pictures.** The LoRA changes weights, the word is a new embedding, and "
        "partial denoise only starts from a picture. The comparison on the right shows the same seeds for each, and "
        "the steps, time and file size. A LoRA can teach what the model has never seen; a word can only name what it "
        "knows; partial denoise changes one picture and learns nothing.\n\nChoose the same folder in both folder "
        "nodes, and one of its pictures in *One of them*.",
        300,
    )
    base = Base(w)
    folder = w.node("BespokeImageFolder", "Pictures of the style", folder=NO_FOLDER, trigger="my style")
    again = w.node("BespokeImageFolder", "The same, for the word", folder=NO_FOLDER)
    picture = w.node("LoadImage", "One of them", 330, image=PICTURE)
    w.column()
    w.group("2  Learn", "learn")
    wires = {"model": base.model, "clip": base.clip, "vae": base.vae}
    lora = w.node("BespokeTrainLora", **wires, images=(folder, "images"), validation=2, **STYLE_TRAINING)
    w.node("BespokeSaveLora", lora=(lora, "lora"), run=(lora, "run"), filename_prefix="bespoke/compared")
    w.column()
    word = w.node(
        "BespokeTrainTextualInversion",
        **wires,
        images=(again, "images"),
        name="my-style",
        init_text="painting",
        template="style",
        validation=2,
    )
    w.node("BespokeSaveEmbedding", embedding=(word, "embedding"), run=(word, "run"), name="my-style", overwrite=True)
    w.column()
    w.group("3  The same seeds", "use")
    plain = base.prompt("a lighthouse on a cliff")
    styled = base.prompt("a lighthouse on a cliff, in my style", "Prompt for the LoRA")
    prompt = base.prompt(
        sentence(w, "a lighthouse on a cliff in the style of", (word, "prompt_word"), ","),
        "Prompt with the word",
        (word, "clip"),
    )
    nothing, latent = base.nothing(), base.empty()
    start = w.node("RepeatLatentBatch", samples=base.encode(picture), amount=4), "LATENT"
    w.column()
    made = [
        base.sample("the base model", plain, nothing, latent),
        base.sample("LoRA", styled, nothing, latent, (lora, "model")),
        base.sample("textual inversion", prompt, nothing, latent),
        base.sample("partial denoise", plain, nothing, start, kind="BespokePartialDenoise", strength=0.75),
    ]
    w.column()
    images = [base.decode(one) for one in made]
    compared = w.node(
        "BespokeCompare",
        images=images,
        runs=[(lora, "run"), (word, "run")],
        labels="the base model\nLoRA\ntextual inversion\npartial denoise of one of the pictures, at 0.75",
    )
    report(w, compared)
    w.column(520)
    w.node("SaveImage", "the three techniques", 560, images=(compared, "image"), filename_prefix="bespoke/compared")


WORKFLOWS = {
    "getting_started": getting_started,
    "lora_train_and_use": lora_style,
    "lora_subject": lora_subject,
    "slider_from_words": slider_from_words,
    "slider_from_pairs": slider_from_pairs,
    "edit_from_pairs": edit_from_pairs,
    "lora_compose": lora_compose,
    "lora_into_checkpoint": lora_checkpoint,
    "lora_inspect_and_scope": lora_inspect,
    "strength_ladder": strength_ladder,
    "img2img_few_steps": few_steps,
    "inpaint_region": inpaint_region,
    "inpaint_only_masked": inpaint_only_masked,
    "fix_many_faces": fix_many_faces,
    "inpaint_soft": inpaint_soft,
    "inpaint_two_stages": inpaint_stages,
    "outpaint": outpaint,
    "textual_inversion": textual_inversion,
    "word_and_lora": word_and_lora,
    "three_techniques": three_techniques,
}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, host.Host(host.prepare_base(Path(base))) as server:
        info = server.get("/object_info")
    for name, build in WORKFLOWS.items():
        w = Workflow(info)
        build(w)
        w.save(OUT / f"{name}.json")
        print(f"{name}.json")


if __name__ == "__main__":
    main()

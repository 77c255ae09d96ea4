"""Prompts as the trainers encode them: a trained text encoder at step 0, and captions that are literal text."""

import copy

import families
import pytest
import safetensors.torch
import torch
from bespoke.nodes.bridge.dataset.conditioning import encode_prompt
from bespoke.nodes.bridge.runs.samples import SamplerSettings
from bespoke.nodes.bridge.trainer import Models
from bespoke.nodes.bridge.training_model.text_encoder import prepare_text_encoder
from bespoke.nodes.jobs.job import ExportedModel, JobContents, read_job, write_job
from bespoke.nodes.jobs.source import Source
from bespoke.nodes.jobs.techniques import TECHNIQUES
from bespoke.nodes.lora.training.request import LoraData, LoraRequest
from bespoke.nodes.lora.training.technique import encode_dataset, sample_texts
from bespoke.training.captions import as_prompt, literal
from bespoke.training.config import TrainConfig

LONG = ", ".join(f"a red circle number {i}" for i in range(20))  # more than 77 tokens
PROMPTS = (
    "",
    "a red circle",
    "(fate), (red:1.4)",
    "((a blue ring)), a (white ground:0.3)",
    r"saber \(fate\), (red:-0.5)",
    "a photo of embedding:mine on white",
    "(a photo of embedding:mine, :1.3) on white",
    f"{LONG}, (a teal heart:1.5)",
    f"(a teal heart:1.5), {LONG}, (a teal heart:0.7) embedding:mine",
)


SOURCE = ExportedModel(Source("checkpoint", ("a.safetensors",), ("0" * 64,)), {"patches": {}}, {})


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """A folder with `mine.safetensors`, two vectors for each encoder of each family."""
    folder = tmp_path_factory.mktemp("embeddings")
    made = {}
    for name in families.WITH_CLIP:
        clip = families.made(name)[1]
        for key in ("clip_l", "clip_g", "clip_h"):
            if encoder := getattr(clip.cond_stage_model, key, None):
                width = encoder.transformer.get_input_embeddings().weight.shape[1]
                made[f"{key} {width}"] = torch.randn(2, width, generator=torch.Generator().manual_seed(width)) * 0.1
    return folder, made


def with_embedding(clip, embeddings, name):
    """A clone of the CLIP that knows `embedding:mine`."""
    import comfy.sd1_clip

    folder, made = embeddings
    own, out = folder / name, clip.clone()
    own.mkdir(exist_ok=True)
    out.tokenizer, tensors = copy.copy(clip.tokenizer), {}
    for attribute, tokenizer in list(vars(clip.tokenizer).items()):
        if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer):
            copied = copy.copy(tokenizer)
            copied.embedding_directory = [str(own)]
            setattr(out.tokenizer, attribute, copied)
            if encoder := getattr(clip.cond_stage_model, attribute, None):
                width = encoder.transformer.get_input_embeddings().weight.shape[1]
                if f"{attribute} {width}" in made:
                    tensors[attribute] = made[f"{attribute} {width}"]
    safetensors.torch.save_file(tensors, own / "mine.safetensors")
    return out


def relative(found, right):
    return float((found - right).detach().abs().max() / right.detach().abs().max())


@pytest.mark.parametrize("skip", [None, -2])
@pytest.mark.parametrize("name", families.WITH_CLIP)
def test_a_trained_text_encoder_begins_with_the_encoding_of_the_sampler(embeddings, name, skip):
    """At step 0 each prompt is encoded as ComfyUI's CLIPTextEncode does, all in one batch as a training step has them.

    Oracle: core's `encode_from_tokens_scheduled`, which makes the conditioning that the user's sampler is given.
    """
    clip = with_embedding(families.made(name)[1], embeddings, name)
    if skip is not None:
        clip.clip_layer(skip)
    with torch.no_grad():
        right = [encode_prompt(clip, prompt) for prompt in PROMPTS]
    with prepare_text_encoder(clip, None) as text:
        found = text.encode(PROMPTS, clip)
    for prompt, (cond, extra), (right_cond, right_extra) in zip(PROMPTS, found, right, strict=True):
        assert relative(cond, right_cond) < 1e-5, prompt
        assert {key for key, value in extra.items() if value is not None} == set(right_extra)
        for key, value in right_extra.items():
            assert relative(extra[key].float(), value.float()) < 1e-5, (prompt, key)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_prompt_weight_by_hand(name):
    """A token of weight w is encoded as w (z - e) + e: e is the empty prompt's encoding, z the one without weights.

    So are the gradients: that of a layer's weight is the sum of w times z's and (1 - w) times e's. The arithmetic is
    written out here, from encodings of prompts without weights.
    """
    clip = families.made(name)[1]
    weight = torch.ones(77)
    weight[3] = 1.4  # start, "a", "small", "red", end
    with prepare_text_encoder(clip, None) as text:
        layer = text.model.clip_l.transformer.text_model.encoder.layers[0].self_attn.q_proj.weight
        layer.requires_grad_(True)

        def gradient(cond):
            direction = torch.randn(cond.shape, generator=torch.Generator().manual_seed(0))
            return torch.autograd.grad((cond * direction).sum(), layer)[0]

        ((found, _),) = text.encode(["a small (red:1.4)"], clip)
        (plain, _), (empty, _) = text.encode(["a small red", ""], clip)
        right = weight[:, None] * (plain - empty) + empty
        assert relative(found, right) < 1e-6
        assert relative(found, plain) > 1e-3
        assert relative(gradient(found), gradient(right)) < 1e-5


def test_a_text_encoders_attention_mask_reaches_the_model():
    """SD3 with T5's attention mask: core gives the mask beside the encoding, and so does the trained text encoder."""
    import comfy.text_encoders.sd3_clip as text

    small = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
    clip = families._encoder(
        text.sd3_clip(t5_attention_mask=True),
        text.SD3Tokenizer,
        clip_l=small | {"projection_dim": 48},
        clip_g=small | {"projection_dim": 48},
        t5xxl=families._T5 | {"d_model": 4096, "d_ff": 8},
    )
    with torch.no_grad():
        cond, extra = encode_prompt(clip, "a (red:1.4) circle")
    with prepare_text_encoder(clip, None) as prepared:
        ((found, fields),) = prepared.encode(["a (red:1.4) circle"], clip)
    assert relative(found, cond) < 1e-5
    assert torch.equal(fields["attention_mask"], extra["attention_mask"])


CAPTIONS = (
    "1girl, saber (fate), sword",
    "(fate) ((deep)) [square] {curly}",
    "an open ( and a face :) and (red:1.4)",
    "C:\\path, 50% <b>, red:1.4",
)


def plain_ids(tokenizer, text):
    """The ids that the encoder's own tokenizer, that of transformers, has for a text that holds no prompt syntax."""
    ids = tokenizer.tokenizer(text)["input_ids"]
    return ids[tokenizer.tokens_start : -1 if tokenizer.tokenizer_adds_end_token else None]


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_literal_caption_has_the_tokens_of_its_text(name, caption):
    """On every family: each bracket is a token, and every weight is 1.

    Oracle: the tokenizer of transformers on the text as it is, and in the chat template where the family has one.
    """
    clip = families.made(name)[1]
    escaped = caption.replace("(", "\\(").replace(")", "\\)")
    for written in (caption, escaped):
        tokens = clip.tokenize(literal(written))
        for key, chunks in tokens.items():
            tokenizer = next(getattr(clip.tokenizer, at) for at in (key, f"clip_{key}") if hasattr(clip.tokenizer, at))
            pairs = [pair for chunk in chunks for pair in chunk]
            assert all(weight == 1 for _, weight in pairs), key
            template = getattr(clip.tokenizer, "llama_template", "{}")
            ids, right = [token for token, _ in pairs], plain_ids(tokenizer, template.format(caption))
            start = 0 if tokenizer.start_token is None else 1
            assert ids[start : start + len(right)] == right, key
            if start + len(right) < len(ids):  # only the end and padding follow
                assert set(ids[start + len(right) :]) <= {tokenizer.end_token, tokenizer.pad_token}, key


def test_a_caption_as_a_prompt_is_weighted():
    """The other syntax, by ComfyUI's rule: brackets are 1.1 times the weight and no tokens."""
    clip = families.made("sd15")[1]
    (chunk,) = clip.tokenize(as_prompt("saber (fate)", "prompt"))["l"]
    assert sum(weight == 1.1 for _, weight in chunk) == len(plain_ids(clip.tokenizer.clip_l, "fate"))
    (chunk,) = clip.tokenize(as_prompt("saber (fate)", "literal"))["l"]
    assert len({token for token, _ in chunk} & set(plain_ids(clip.tokenizer.clip_l, "( )"))) == 2


@pytest.mark.parametrize(
    "caption", ["a photo of embedding:mine", "saber (fate), embedding:mine, red", "a (embedding:mine) (red)"]
)
def test_an_embedding_in_a_literal_caption(embeddings, caption):
    """Its two vectors stand among the tokens of the rest of the caption."""
    clip = with_embedding(families.made("sd15")[1], embeddings, "sd15")
    (chunk,) = clip.tokenize(literal(caption))["l"]
    vectors = [token for token, _ in chunk if torch.is_tensor(token)]
    assert torch.equal(torch.stack(vectors), embeddings[1]["clip_l 48"])
    rest = plain_ids(clip.tokenizer.clip_l, caption.replace("embedding:mine", " "))
    assert [token for token, _ in chunk if not torch.is_tensor(token)][1 : 1 + len(rest)] == rest


def bracket_set(syntax):
    """Three pictures whose captions hold brackets in both of the forms that tag files have, and the trigger."""
    from bespoke.nodes.images.batch import image_set

    pixels = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    return image_set(pixels, "saber (fate)\nsaber \\(fate\\), red\nno brackets", "ohwx (a)", caption_syntax=syntax)


@pytest.mark.parametrize(
    ("syntax", "captions", "trigger"),
    [
        (
            "literal",
            ["ohwx \\(a\\), saber \\(fate\\)", "ohwx \\(a\\), saber \\(fate\\), red", "ohwx \\(a\\), no brackets"],
            "ohwx \\(a\\)",
        ),
        (
            "prompt",
            ["ohwx (a), saber (fate)", "ohwx (a), saber \\(fate\\), red", "ohwx (a), no brackets"],
            "ohwx (a)",
        ),
    ],
)
def test_trainings_and_jobs_carry_the_syntax_of_the_set(tmp_path, syntax, captions, trigger):
    """What is encoded, the sample's prompt, the run's trigger, and the same in a job folder that is read again.

    A job of version 0.1 has its captions as they were written, and is read as prompts, as 0.1 read them.
    """
    models = families.made("sd15")
    request = LoraRequest(TrainConfig(1, 1e-3, 1, 0), targets="attention")
    dataset = encode_dataset(Models(*models), LoraData(bracket_set(syntax)), request)
    assert sorted(dataset.prompts) == sorted(["", *captions])
    assert sample_texts(dataset.pictures, request) == [captions[0], ""]
    assert dataset.run_fields["trigger"] == trigger
    cond, _ = dataset.prompts[captions[0]]
    plain, _ = encode_prompt(models[1], captions[0])
    assert torch.equal(cond, plain)

    contents = JobContents("lora", request.settings(), dataset, {"model": SOURCE}, {}, SamplerSettings())
    write_job(tmp_path / "job", contents)
    job = read_job(tmp_path / "job")
    assert [one["caption"] for one in job.material["pictures"]] == captions
    assert all("caption_syntax" not in one for one in job.material["pictures"])  # as in a job of version 0.1
    back = job.dataset(request.train)
    assert back.pictures.prompts == dataset.pictures.prompts
    TECHNIQUES["lora"].check_request(request, back)


def test_the_syntax_is_part_of_a_run_where_it_makes_a_difference():
    """A set without brackets gives the same run in both; one with brackets does not."""
    from bespoke.nodes.images.batch import image_set

    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    request, models = LoraRequest(TrainConfig(1, 1e-3, 1, 0)), Models(*families.made("sd15"))

    def run_of(caption, syntax):
        data = LoraData(image_set(pixels, caption, caption_syntax=syntax))
        return encode_dataset(models, data, request).new_run("lora", request.settings(), {}).info.id

    assert run_of("a red circle", "literal") == run_of("a red circle", "prompt")
    assert run_of("saber (fate)", "literal") != run_of("saber (fate)", "prompt")
    assert run_of("saber (fate)", "literal") == run_of("saber \\(fate\\)", "prompt")


def test_the_nodes_pass_the_syntax_on(run_node, comfyui):
    from PIL import Image

    folder = comfyui / "input" / "syntax"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("saber (fate)")
    given = dict(folder="syntax", captions="text files", template="", trigger="", resolution=64)
    for more, prompt in (({}, "saber \\(fate\\)"), ({"caption_syntax": "prompt"}, "saber (fate)")):
        assert run_node("BespokeImageFolder", **given, **more)[0].items[0].prompt == prompt
        batch = dict(images=torch.rand(1, 64, 64, 3), captions="saber (fate)", trigger="")
        assert run_node("BespokeImageBatch", **batch, **more)[0].items[0].prompt == prompt


@pytest.mark.parametrize(
    ("node", "settings"),
    [
        ("BespokeTrainTextualInversion", {"template": "captions", "name": "w", "init_text": "red"}),
        ("BespokeTrainLora", {"train_text_encoder": True}),
        ("BespokeTrainLora", {"train_text_encoder": False}),
    ],
)
def test_each_training_reads_captions_as_the_set_says(run_node, node, settings):
    """A step on a literal caption is, to the bit, the step on the prompt that escapes it, and not that on the raw one.

    Its last part is a prompt weight, which must act in a prompt.
    """
    from bespoke.nodes.images.batch import image_set

    pixels = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    model, clip, vae = families.made("sd15")
    given = dict(model=model, clip=clip, vae=vae, steps=1, batch_size=2, seed=0, precision="fp32")
    given |= dict(validation=0, resume=False)

    def first_loss(caption, syntax):
        images = image_set(pixels, caption, caption_syntax=syntax)
        run = next(out for out in run_node(node, images=images, **given | settings) if hasattr(out, "losses"))
        return run.losses[0]

    caption = "saber (fate), a {word} on (red:1.4)"
    literal_loss = first_loss(caption, "literal")
    assert literal_loss == first_loss(literal(caption), "prompt")
    weighted = first_loss(caption, "prompt")
    assert abs(literal_loss - weighted) > 1e-6
    assert abs(weighted - first_loss("saber fate, a {word} on red", "prompt")) > 1e-6

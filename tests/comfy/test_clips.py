"""Trainings on clips: which frames reach the latents, what the models are told of them, and samples that play."""

import collections
from dataclasses import replace

import edit_models
import families
import host_models
import pytest
import stand_ins
import torch
from bespoke.nodes.bridge.dataset import clips
from bespoke.nodes.bridge.dataset.captions import CaptionConditioning
from bespoke.nodes.bridge.dataset.clips import groups_of, latent_frames, mask_to_latent, usable_frames
from bespoke.nodes.bridge.dataset.pictures import encode_pictures
from bespoke.nodes.bridge.drawing.animated import AnimatedPicture
from bespoke.nodes.bridge.evidence.samples import pairs_of
from bespoke.nodes.bridge.runs.samples import SampleShape, frames_for, with_frames
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.bridge.trainer import Models
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.lora.training.request import LoraData, LoraRequest
from bespoke.nodes.lora.training.technique import encode_dataset
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.sample_prompts import SamplePrompt
from comfy_api.latest import io
from family_checks import check_gradient
from helpers import image_set, weights_hash
from moving import clip_of, mixed_set, still_of
from PIL import Image

CONFIG = TrainConfig(1, 1e-3, 1, 0)
# {row of host_models or families: picture frames to a latent frame}
VIDEO = {
    "wan": 4, "wan22": 4, "ltxv": 8, "ltxav": 8, "hunyuan_video": 4, "hunyuan_video15": 4, "kandinsky5": 4, "mochi": 6,
    "cosmos": 8, "cogvideox": 4,
}  # fmt: skip
FAST = {"wan", "hunyuan_video"}
each_family = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in VIDEO]
)


def models_of(name):
    if name in families.MAKERS:
        return families.made(name)
    if host_models.config_class(name) is None:
        pytest.skip(f"this ComfyUI has no {host_models.ROWS[name].config}")
    return host_models.made(name)


def train(run_node, models, images, **changes):
    model, clip, vae = models
    settings = dict(
        steps=2, batch_size=2, rank=2, alpha=1.0, learning_rate=1e-2, seed=5, precision="fp32", resume=False,
        targets="attention",
    )  # fmt: skip
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **settings | changes)


@each_family
def test_two_steps_on_clips_and_stills(run_node, name):
    """Losses are numbers, the base keeps its bits, and each shape of latent has its batches."""
    import comfy.model_management

    models = models_of(name)
    step = VIDEO[name]
    size = (64, 64) if name not in ("ltxv", "ltxav") else (128, 128)
    images = image_set([clip_of(0, 1 + step, size), clip_of(1, 2 + step, size), still_of(2, size)])
    comfy.model_management.unload_all_models()
    before = weights_hash(models[0].model)
    _, lora, loss, _, report, _ = train(run_node, models, images, steps=3, batch_size=2)
    assert weights_hash(models[0].model) == before
    assert len(loss["loss"]) == 3
    assert all(0 < each < 1e4 for each in loss["loss"])
    assert any(bool(tensor.any()) for key, tensor in lora.items() if "lora_up" in key)
    assert f"1.mp4 from {2 + step} to {1 + step}" in report


# --- which frames reach the latents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temporal", "given", "usable", "latent"),
    [
        (4, 1, 1, 1), (4, 4, 1, 1), (4, 5, 5, 2), (4, 8, 5, 2), (4, 81, 81, 21), (6, 20, 19, 4), (8, 8, 1, 1),
        (8, 97, 97, 13),
    ],
)  # fmt: skip
def test_the_frames_that_a_vae_packs_whole(comfyui, temporal, given, usable, latent):
    """n k + 1: by hand, for Wan and HunyuanVideo (4), Mochi (6), LTX-Video and Cosmos (8)."""
    vae = stand_ins.vae(4, frames=True, temporal=temporal)
    assert usable_frames(vae, given) == usable
    assert latent_frames(vae, usable) == latent
    groups = groups_of(vae, families.made("wan")[0].model, torch.zeros(1, 4, latent, 8, 8))
    assert sum(groups) == usable
    assert groups == (1, *[temporal] * (latent - 1))


def test_numbered_frames_reach_the_latents_as_cores_node_encodes_them(run_node):
    """The frames of a clip are one grey each, and the VAE is a linear map, so that a latent frame says by arithmetic
    which frames it has: the first alone, then the mean of four. The last three are cut off; captions stay by clips."""
    model, _, _ = models_of("hunyuan_video")
    vae = stand_ins.vae(16, frames=True)
    grey = torch.arange(8, dtype=torch.uint8)[:, None, None, None] * 20
    clips = [replace(clip_of(n, 8), pixels=(grey + n).expand(8, 64, 64, 3).contiguous()) for n in (0, 1)]
    pictures = encode_pictures(vae, model.model, CONFIG, image_set(clips))
    unit = model.model.process_latent_in(torch.zeros(1, 16, 1, 1, 1))
    per_grey = vae.first_stage_model.weight.sum(1)[None, :, None] / 255  # [1, 16, 1], of a grey of 1
    factor = model.model.process_latent_in(torch.ones(1, 16, 1, 1, 1)) - unit
    for number, (item, latent) in enumerate(zip(pictures.items, pictures.data.latents, strict=True)):
        assert (item.frames, item.caption) == (5, f"a square moves {number}")
        greys = (latent - unit).mean((3, 4)) / factor[..., 0, 0] / per_grey
        means = torch.tensor([0.0, (20 + 40 + 60 + 80) / 4]) + number
        assert torch.allclose(greys, means.expand(1, 16, 2), atol=1e-3)
        (core,) = run_node("VAEEncode", pixels=item.pixels.float() / 255, vae=vae)
        assert torch.equal(latent, model.model.process_latent_in(core["samples"]))
    assert [note for note in pictures.notes if "0.mp4 from 8 to 5, 1.mp4 from 8 to 5" in note]


def test_a_mask_that_is_cut_off_is_named(comfyui):
    vae = stand_ins.vae(16, frames=True)
    late, early = torch.zeros(8, 64, 64), torch.zeros(8, 64, 64)
    late[5:], early[4] = 1.0, 1.0
    given = [replace(clip_of(n, 8), mask=mask) for n, mask in enumerate((late, early))]
    items, notes = clips.cut_clips(vae, given)
    assert [item.mask.shape[0] for item in items] == [5, 5]
    assert notes[1:] == [
        "nothing is learned of 0.mp4: the mask is black in the frames that are left; set frame_step of Bespoke Clip "
        "Folder to 4"
    ]


def test_a_mask_of_frames_is_the_mean_of_what_a_latent_cell_covers():
    mask = torch.zeros(5, 16, 16)
    mask[0, :8, :8] = 1.0  # a whole cell of the first latent frame
    mask[2, :8, 8:12] = 1.0  # half of a cell in one of four frames
    cells = mask_to_latent(mask, torch.zeros(1, 4, 2, 2, 2), (1, 4))
    assert cells.shape == (1, 1, 2, 2, 2)
    assert cells[0, 0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert cells[0, 0, 1].tolist() == [[0.0, 0.125], [0.0, 0.0]]
    still = mask_to_latent(mask[0], torch.zeros(1, 4, 3, 2, 2))  # one mask counts for all frames
    assert still.shape == (1, 1, 3, 2, 2)
    assert torch.equal(still[:, :, 0], still[:, :, 2])


def test_stills_and_clips_are_one_plan_of_batches(comfyui):
    """A batch has one shape, each item is drawn as often as its weight says, and a picture is one latent frame."""
    model, _, vae = models_of("wan")
    data = encode_pictures(vae, model.model, CONFIG, mixed_set(masks=True)).data
    assert [latent.shape[2] for latent in data.latents] == [2, 2, 3, 1, 1]
    config = TrainConfig(10, 1e-3, 2, 0)
    seen = []
    for micro in range(10):
        batch = data.batch(config, micro, torch.device("cpu"), _Uniform())
        assert {tuple(data.latents[i].shape[1:]) for i in batch.indices} == {tuple(batch.latent.shape[1:])}
        assert batch.mask is None or batch.mask.shape[2:] == batch.latent.shape[2:]
        seen += batch.indices
    assert sorted(set(seen)) == [0, 1, 2, 3, 4]
    counts = data.draw_counts(config, 10, range(5))
    assert counts == collections.Counter(seen)


class _Uniform:
    """t as it is drawn."""

    def sample(self, places):
        return places

    def weight(self, _t):
        return None


# --- what models are told ---------------------------------------------------------------------------------------------


def test_image_to_video_is_given_the_clips_own_first_frame(run_node):
    """As core's WanImageToVideo builds it, and as arithmetic does: grey behind the first frame, a mask of 0 on it."""
    model, clip, vae = edit_models.wan_i2v()
    images = image_set([clip_of(0, 9), clip_of(1, 5)])
    dataset = encode_dataset(Models(model, clip, vae), LoraData(images), LoraRequest(CONFIG))
    pictures = dataset.pictures
    for item, told, latent in zip(pictures.items, pictures.told, pictures.data.latents, strict=True):
        first = item.first_frame[None].float() / 255
        given = dict(positive=[[torch.zeros(1, 1, 1), {}]], negative=[[torch.zeros(1, 1, 1), {}]], vae=vae, width=64)
        core, *_ = run_node("WanImageToVideo", height=64, length=item.frames, batch_size=1, start_image=first, **given)
        assert torch.equal(told["concat_latent_image"], core[0][1]["concat_latent_image"].float())
        assert torch.equal(told["concat_mask"], core[0][1]["concat_mask"])
        film = torch.cat([first, torch.full((item.frames - 1, 64, 64, 3), 0.5)])
        with torch.inference_mode():
            assert torch.equal(told["concat_latent_image"], vae.encode(film).float())
        assert told["concat_mask"].mean((0, 1, 3, 4)).tolist() == [0.0] + [1.0] * (latent.shape[2] - 1)
    _, _, loss, _, report, _ = train(run_node, (model, clip, vae), images, batch_size=1, steps=3)
    assert all(0 < each < 1e4 for each in loss["loss"])
    assert "2 of 2 pictures came with the first frame (WanImageToVideo)" in report


def test_pairs_of_stills_and_clips_are_one_set_of_image_to_video(run_node):
    pair = edit_models.pairs(1, size=(64, 64)).items[0]
    *_, run, report, _ = train(run_node, edit_models.wan_i2v(), image_set([clip_of(0, 5), pair]))
    assert len(run.losses) == 2
    assert "2 of 2 pictures came with" in report


def test_image_to_video_refuses_what_has_no_first_frame(run_node):
    models = edit_models.wan_i2v()
    with pytest.raises(InputError, match=r"needs a second picture of each, and 1 of 2 have none: 1\.png"):
        train(run_node, models, image_set([clip_of(0, 5), still_of(1)]))
    with pytest.raises(InputError, match=r"or a set of clips \(Bespoke Clip Folder\)"):
        train(run_node, models, image_set([still_of(1)]))
    double = replace(clip_of(0, 5), control=clip_of(1, 5).pixels)
    with pytest.raises(InputError, match=r"'0\.mp4' is a clip with a second one.*train on the clips alone"):
        train(run_node, models, image_set([double]))


@pytest.mark.parametrize("node", ["BespokeTrainLora", "BespokeTrainTextualInversion"])
def test_a_model_of_pictures_refuses_clips_by_name(run_node, node):
    for models in (families.made("sd15"), families.made("qwen_image")):
        own = {"name": "w", "init_text": "red"} if "Inversion" in node else {}
        given = dict(zip(("model", "clip", "vae"), models, strict=True), images=image_set([clip_of(0, 5)]), steps=1)
        with pytest.raises(
            Exception, match=r"1 clips, such as '0\.mp4' of 5 frames, and this model .* single pictures"
        ):
            run_node(node, **given, **own)


def test_a_vae_of_pictures_is_refused(run_node):
    model, clip, _ = models_of("hunyuan_video")
    with pytest.raises(InputError, match="the VAE on the wire encodes single pictures; wire in the VAE that belongs"):
        train(run_node, (model, clip, stand_ins.vae(16)), image_set([clip_of(0, 5)]))


@pytest.mark.parametrize("name", ["ltxv", "ltxav"])
def test_ltx_is_told_a_clips_frames_a_second(run_node, name):
    """As core's LTXVConditioning tells it; of a picture core's 25."""
    model, clip, vae = models_of(name)
    images = image_set([clip_of(0, 9, (128, 128), fps=12.0), still_of(1, (128, 128))])
    dataset = encode_dataset(Models(model, clip, vae), LoraData(images), LoraRequest(CONFIG))
    with prepare_for_training(model, "fp32") as denoiser:
        captions = CaptionConditioning(denoiser, dataset.pictures, clip, None, dataset.prompts)
        rates = [captions.of_batch([i], [item.prompt]).tensors()["frame_rate"] for i, item in enumerate(images.items)]
        sample = captions.encode([images.items[0].prompt], dataset.pictures.sample_index)
    assert rates == [12.0, 25]
    core, *_ = run_node("LTXVConditioning", positive=[[torch.zeros(1), {}]], negative=[], frame_rate=12.0)
    assert sample[0][1]["frame_rate"] == core[0][1]["frame_rate"]


# --- samples ----------------------------------------------------------------------------------------------------------

GRAPH = {
    "9": {
        "class_type": "KSampler",
        "inputs": {"steps": 2, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "seed": 3},
    }
}


def frames_in(path, fps):
    """The frames that an animated picture shows `fps` times a second, as bytes. WebP joins equal ones."""
    with Image.open(path) as film:
        out = []
        for number in range(film.n_frames):
            film.seek(number)
            shown = film.convert("RGB").tobytes()
            out += [shown] * round(film.info["duration"] * fps / 1000)
        return out


def test_samples_of_clips_are_short_films_that_core_would_draw(run_node):
    """Frames of the most frequent clips, at their frames a second, of the base as KSampler and VAE Decode give them;
    --f asks for others, and 1 for a still. The card shows three of the frames."""
    model, clip, vae = models_of("hunyuan_video")
    images = image_set([still_of(4), clip_of(0, 9, fps=8.0), clip_of(1, 9, fps=8.0), clip_of(2, 5)])
    *_, run, _, _ = train(
        run_node, (model, clip, vae), images, sample_every=2, hidden={io.Hidden.prompt: GRAPH},
        sample_prompt="a square moves\na square --f 5\na square --f 1",
    )  # fmt: skip
    names = ["000000.webp", "000000_02.webp", "000000_03.png", "000002.webp", "000002_02.webp", "000002_03.png"]
    assert [name for _, name in run.samples] == names
    store = RunStore(run.id)
    drawn = {name: frames_in(store.sample_path(name), 8.0) for name in names if "webp" in name}
    assert [len(drawn[name]) for name in names if "webp" in name] == [9, 5, 9, 5]
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a square moves", ""))
    given = dict(positive=positive, negative=negative, denoise=1.0, **GRAPH["9"]["inputs"])
    latent = {"samples": torch.zeros(1, 16, 3, 8, 8)}
    samples = run_node("KSampler", model=model, latent_image=latent, **given)[0]["samples"]
    core = run_node("VAEDecode", vae=vae, samples={"samples": samples})[0]
    film = AnimatedPicture(
        tuple(Image.fromarray(each.numpy()) for each in (core.clamp(0, 1) * 255).round().byte()), 8.0
    )
    film.save(store.folder / "core.webp")
    assert drawn["000000.webp"] == frames_in(store.folder / "core.webp", 8.0)
    (first, *_) = pairs_of(run, store.folder)
    assert first.kept.size == (3 * 64, 64)
    thirds = [first.base.crop((64 * i, 0, 64 * i + 64, 64)).tobytes() for i in range(3)]
    assert thirds == [drawn["000000.webp"][number] for number in (0, 4, 8)]
    assert pairs_of(run, store.folder, frames=1)[0].base.tobytes() == drawn["000000.webp"][4]


def test_samples_have_at_most_the_frames_of_a_short_film(comfyui):
    """33; of a model of image to video what it is told of the first frame is cut alike."""
    vae, latent = stand_ins.vae(16, frames=True), torch.zeros(1, 16, 21, 8, 8)
    shape = SampleShape.of(latent, clip_of(0, 81))
    assert frames_for(SamplePrompt(), vae, shape) == 33
    assert frames_for(SamplePrompt(frames=49), vae, shape) == 49
    assert frames_for(SamplePrompt(frames=1), vae, shape) is None
    still = SampleShape.of(latent[:, :, :1], still_of(0))
    assert frames_for(SamplePrompt(), vae, still) is None
    assert frames_for(SamplePrompt(frames=9), vae, still) == 9
    with pytest.raises(InputError, match=r"--f 10, and the VAE packs frames in groups of 4 behind the first; write 9"):
        frames_for(SamplePrompt(frames=10), vae, shape)
    with pytest.raises(InputError, match="--f 9, and this model makes single pictures; take it out"):
        frames_for(SamplePrompt(frames=9), vae, replace(shape, latent=latent[:, :, 0]))
    told = {"concat_latent_image": torch.arange(5.0).reshape(1, 1, 5, 1, 1), "concat_mask": torch.ones(1, 1, 5, 1, 1)}
    ((_, cut),) = with_frames([[torch.zeros(1), told]], 3)
    assert cut["concat_latent_image"].flatten().tolist() == [0.0, 1.0, 2.0]
    assert told["concat_mask"].shape[2] == 5
    with pytest.raises(InputError, match="--f for 7 latent frames, and the first frame of a clip was encoded for 5"):
        with_frames([[torch.zeros(1), told]], 7)


def test_a_model_of_pictures_with_a_vae_of_films_is_not_asked_for_frames(run_node):
    models = models_of("qwen_image")
    with pytest.raises(InputError, match="--f 5, and this model makes single pictures; take it out"):
        train(
            run_node, models, image_set([still_of(0)]), sample_every=1, sample_prompt="a --f 5", batch_size=1,
            hidden={io.Hidden.prompt: GRAPH},
        )  # fmt: skip


def test_image_to_video_samples_begin_with_the_clips_first_frame(run_node):
    models = edit_models.wan_i2v()
    images = image_set([clip_of(0, 9), clip_of(1, 9)])
    *_, run, _, _ = train(
        run_node, models, images, sample_every=2, sample_prompt="a\na --f 5", hidden={io.Hidden.prompt: GRAPH}
    )
    lengths = [len(frames_in(RunStore(run.id).sample_path(name), 16.0)) for _, name in run.samples]
    assert lengths == [9, 5, 9, 5]


# --- all of a training ------------------------------------------------------------------------------------------------


def test_a_resumed_training_on_clips_and_stills_ends_in_the_same_bits(run_node):
    """With masks of frames, noises of several resolutions, validation on a clip and picture losses."""
    models = models_of("wan")
    given = dict(
        images=mixed_set(masks=True), validation_images=image_set([clip_of(7, 5)]), validation=1, noise_offset=0.1,
        multires_noise=0.3, ip_noise_gamma=0.1, max_norm=1.0, score_pictures="on", lr_schedule="constant", keep="last",
        seed=31,
    )  # fmt: skip
    _, whole, loss, run, *_ = train(run_node, models, steps=4, **given)
    train(run_node, models, steps=2, **given)
    _, lora, again, resumed, *_ = train(run_node, models, **given | dict(steps=4, resume=True))
    assert resumed.id == run.id
    assert again["loss"] == loss["loss"]
    assert all(torch.equal(value, lora[key]) for key, value in whole.items())
    assert set(run.held_out) < set(resumed.held_out)  # the shorter training scored its last step too
    assert {row.name for row in run.pictures if row.held_out} == {"7.mp4"}


def test_find_learning_rate_takes_clips(run_node):
    model, clip, vae = models_of("hunyuan_video")
    rate, *_ = run_node(
        "BespokeFindLearningRate", model=model, clip=clip, vae=vae, images=mixed_set(), probes=3, batch_size=2, rank=2,
        steps=90, precision="fp32",
    )  # fmt: skip
    assert rate > 0


def test_a_slider_learns_from_pairs_of_clips(run_node):
    model, clip, vae = models_of("hunyuan_video")
    bright, dark = (
        image_set([replace(clip_of(n, 5), pixels=clip_of(n, 5).pixels // part) for n in (0, 1)]) for part in (1, 2)
    )
    *_, run, _, _ = run_node(
        "BespokeTrainSlider", model=model, clip=clip, vae=vae, positive_images=bright, negative_images=dark, steps=2,
        target="a square", batch_size=1, rank=2, precision="fp32", sample_every=2, resume=False,
        hidden={io.Hidden.prompt: GRAPH},
    )  # fmt: skip
    assert len(run.losses) == 2
    film = frames_in(RunStore(run.id).sample_path(run.samples[-1][1]), 16.0)
    assert len(film) == 5
    longer = image_set([clip_of(0, 9), clip_of(1, 9)])
    with pytest.raises(
        InputError, match="2 pairs have two sizes: 0.mp4 .64 x 64, 5 frames. and 0.mp4 .64 x 64, 9 frames."
    ):
        run_node(
            "BespokeTrainSlider", model=model, clip=clip, vae=vae, positive_images=bright, negative_images=longer,
            target="a square", steps=1,
        )  # fmt: skip


@pytest.mark.parametrize("node", ["BespokeTrainTextualInversion", "BespokeTrainWordAndLora"])
def test_a_word_is_learned_from_clips(run_node, node):
    model, clip, vae = models_of("wan")
    images = [replace(item, caption=f"{{word}} moves {n}") for n, item in enumerate(mixed_set().items)]
    own = {} if "Lora" in node else {"template": "captions"}
    given = dict(name="w", init_text="red", steps=2, batch_size=2, precision="fp32", resume=False, **own)
    out = run_node(node, model=model, clip=clip, vae=vae, images=image_set(images), **given)
    (run,) = [each for each in out if hasattr(each, "losses")]
    assert len(run.losses) == 2
    assert all(0 < each < 1e4 for each in run.losses)


@pytest.mark.slow
def test_the_gradient_with_a_first_frame_is_that_of_finite_differences(comfyui):
    """Of Wan's image to video with three latent frames; the families' tests have the others with two."""
    check_gradient(host_models.make("wan_i2v", dtype=torch.float64), 3)


def test_a_clip_that_does_not_fit_is_encoded_in_tiles_as_core_does(run_node, monkeypatch):
    """By core's estimate of the VAE's memory, beside what is free; a picture is never tiled. The report says so."""
    model, _, vae = models_of("wan")
    images = image_set([clip_of(0, 9), still_of(1)])
    whole = encode_pictures(vae, model.model, CONFIG, images)
    needed = vae.memory_used_encode((1, 3, 9, 64, 64), vae.vae_dtype)
    monkeypatch.setattr(clips, "available_memory", lambda device: needed - 1)
    tiled = encode_pictures(vae, model.model, CONFIG, images)
    tile = dict(tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8)
    (core,) = run_node("VAEEncodeTiled", pixels=images.items[0].pixels.float() / 255, vae=vae, **tile)
    assert torch.equal(tiled.data.latents[0], model.model.process_latent_in(core["samples"]).float())
    assert torch.equal(tiled.data.latents[1], whole.data.latents[1])
    assert tiled.notes == (
        "1 of the clips needed more memory than is free, and VAEEncodeTiled's tiles were used to encode",
    )
    assert whole.notes == ()


def test_the_sweep_says_that_its_cells_are_single_frames(run_node):
    models = models_of("hunyuan_video")
    _, lora, *_ = train(run_node, models, image_set([clip_of(0, 5)]))
    model, clip, vae = models
    grid, report = run_node(
        "BespokeLoraSweep", model=model, clip=clip, vae=vae, loras={"lora0": lora}, strengths="1", prompts="a square",
        steps=1, width=64, height=64, images=image_set([clip_of(1, 5), still_of(2)]),
    )  # fmt: skip
    assert grid.ndim == 4
    assert "each cell is one of a single frame" in report
    assert "lowest loss on images" in report or "No LoRA lowers" in report

"""Words in a LoRA's file: written, read in other programs' spelling, given to a CLIP, kept by what is made of the file.

The oracles are the trainer's own outputs, and ComfyUI's reader of embeddings, which takes the same file from the
embeddings folder.
"""

import comfy.sd1_clip
import pytest
import safetensors.torch
import tiny
import torch
from bespoke.training.errors import InputError
from helpers import sprite_set

NAME = "my-teal"
PROMPT = f"a embedding:{NAME} circle on white"
PLAIN = "a circle on white"


@pytest.fixture(scope="module")
def models(comfyui):
    """(model, clip, vae): SD1.5's classes with one level of the U-Net."""
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


@pytest.fixture(scope="module")
def trained(models, run_node):
    """The outputs of a short training of both, with a trained text encoder."""
    model, clip, vae = models
    images = sprite_set(3, 4, colour="teal", word="{word}", side=64)
    return run_node(
        "BespokeTrainWordAndLora", model=model, clip=clip, vae=vae, images=images, name=NAME, init_text="green",
        vectors=2, rank=2, alpha=2.0, learning_rate=1e-3, word_learning_rate=2e-2, steps=2, batch_size=2, seed=0,
        precision="fp32", train_text_encoder=True, score_pictures="off", resume=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(trained, run_node):
    """The name of the file of both."""
    return run_node("BespokeSaveLora", lora=trained[2], run=trained[6], filename_prefix="bundle/own", dtype="fp32")[0]


def tensors_of(comfyui, name):
    return safetensors.torch.load_file(comfyui / "models" / "loras" / name)


def written(comfyui, name, tensors):
    """The name of a file of these tensors in the loras folder."""
    path = comfyui / "models" / "loras" / "bundle" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return f"bundle/{path.name}"


def layers_in(tensors):
    return {key: value for key, value in tensors.items() if not key.startswith("bundle_emb.")}


def inject(run_node, models, name, **changes):
    return run_node("BespokeInjectLora", model=models[0], clip=models[1], lora_name=name, strength_model=1.0, **changes)


def picture(run_node, model, clip, prompt=PROMPT):
    """The latent that core's nodes draw with two steps."""
    (positive,), (negative,) = (run_node("CLIPTextEncode", clip=clip, text=text) for text in (prompt, ""))
    (latent,) = run_node(
        "KSampler", model=model, seed=1, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        positive=positive, negative=negative, latent_image={"samples": torch.zeros(1, 4, 8, 8)},
    )  # fmt: skip
    return latent["samples"]


def by_core(comfyui, name, tensors, clip, prompt):
    """The conditioning of `prompt` by ComfyUI's own reader, with the file in the embeddings folder as `name`."""
    folder = comfyui / "models" / "embeddings"
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    other = clip.clone()
    for tokenizer in vars(other.tokenizer).values():
        if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer):
            tokenizer.embedding_directory = [str(folder)]
    return tiny.encode(other, prompt)


def test_one_file_gives_the_trained_picture(models, trained, run_node, saved):
    """To the bit, with Inject LoRA alone and a file of float32."""
    model, clip, report, words, _ = inject(run_node, models, saved)
    assert words == f"embedding:{NAME}"
    assert f"The clip output knows embedding:{NAME}, by the vectors in the file." in report
    assert "matched nothing" not in report
    ours, theirs = picture(run_node, model, clip), picture(run_node, trained[0], trained[1])
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, picture(run_node, model, clip, PLAIN))
    assert not torch.equal(ours, picture(run_node, *models[:2]))


@pytest.mark.parametrize("mode", ["bypass", "masked"])
def test_every_way_to_apply_it_gives_the_word(models, trained, run_node, saved, mode):
    """With a mask the text encoder has no part of the LoRA, and it knows the word all the same."""
    more = {"mode": "bypass"} | ({"mask": torch.ones(1, 8, 8)} if mode == "masked" else {})
    _, clip, *_ = inject(run_node, models, saved, **more)
    text = (
        trained[1]
        if mode == "bypass"
        else run_node("BespokeApplyEmbedding", clip=models[1], embedding=trained[3][NAME], name=NAME)[0]
    )
    assert torch.allclose(tiny.encode(clip, PROMPT), tiny.encode(text, PROMPT), atol=1e-5)


def test_without_a_clip_the_report_asks_for_one(models, run_node, saved):
    _, clip, report, words, _ = run_node("BespokeInjectLora", model=models[0], lora_name=saved, strength_model=1.0)
    assert clip is None
    assert f"The file carries embedding:{NAME}; wire in a clip" in report
    assert words == f"embedding:{NAME}"


@pytest.mark.parametrize("key_format", ["kohya", "comfy", "diffusers"])
def test_every_format_keeps_the_word(models, trained, run_node, comfyui, saved, key_format):
    """Loaded, wired and saved again. The vectors stay float32 where the LoRA is rounded."""
    lora, _, _ = run_node("BespokeLoadLora", lora_name=saved)
    more = {"run": trained[6], "embedding": trained[3]} if key_format == "diffusers" else {}
    name, *_ = run_node(
        "BespokeSaveLora", lora=trained[2] if more else lora, filename_prefix=f"bundle/{key_format}",
        key_format=key_format, **more,
    )  # fmt: skip
    found = tensors_of(comfyui, name)
    key = f"bundle_emb.{NAME}.clip_l"
    assert [name for name in found if name.startswith("bundle_emb")] == [key]
    assert torch.equal(found[key], trained[3][NAME]["clip_l"])
    assert found[key].dtype == torch.float32
    assert {tensor.dtype for tensor in layers_in(found).values()} == {torch.float16}
    assert inject(run_node, models, name)[3] == f"embedding:{NAME}"


def test_a_file_for_diffusers_has_a_word_only_where_that_is_asked_for(trained, run_node, comfyui):
    """diffusers loads no file with a key that is not of a LoRA (`is_correct_format` in its `lora_pipeline.py`)."""
    name, *_ = run_node(
        "BespokeSaveLora", lora=trained[2], run=trained[6], filename_prefix="bundle/bare", key_format="diffusers"
    )
    assert all("lora" in key for key in tensors_of(comfyui, name))


def test_a_word_by_its_own_trainer_is_written_under_a_name(models, trained, run_node, comfyui):
    """A nameless word needs `embedding_name`; what a LoRA carries itself stays beside it."""
    word = {"clip_l": torch.randn(1, tiny.CONTEXT)}
    with pytest.raises(InputError, match="the embedding on the wire has no name; give embedding_name the word"):
        run_node("BespokeSaveLora", lora=trained[2], embedding=word)
    with pytest.raises(InputError, match="programs read it up to the first dot; give a name without"):
        run_node("BespokeSaveLora", lora=trained[2], embedding=word, embedding_name="a.b")
    with pytest.raises(InputError, match="embedding_name is 'cat' and no embedding is wired in"):
        run_node("BespokeSaveLora", lora=trained[2], embedding_name="cat")
    name, *_ = run_node(
        "BespokeSaveLora", lora=trained[2], embedding=word, embedding_name="cat", filename_prefix="bundle/two"
    )
    assert torch.equal(tensors_of(comfyui, name)["bundle_emb.cat.clip_l"], word["clip_l"])
    assert inject(run_node, models, name)[3] == f"embedding:cat, embedding:{NAME}"
    plain = dict(trained[2].items())  # as from another pack, without words
    name, *_ = run_node("BespokeSaveLora", lora=plain, embedding=trained[3], filename_prefix="bundle/plain")
    assert [key for key in tensors_of(comfyui, name) if "bundle" in key] == [f"bundle_emb.{NAME}.clip_l"]


# --- other programs' files -------------------------------------------------------------------------------------------


def test_a_bundle_of_the_webui_for_sd1(models, run_node, comfyui, saved):
    """Pull request 13568: the keys of an embedding file under the word's name, `string_to_param.*` for SD1.

    The word's conditioning is what ComfyUI's own reader makes of the same file in the embeddings folder.
    """
    vectors = torch.randn(2, tiny.CONTEXT)
    tensors = layers_in(tensors_of(comfyui, saved)) | {"bundle_emb.tom.string_to_param.*": vectors}
    name = written(comfyui, "webui", tensors)
    _, clip, report, words, _ = inject(run_node, models, name, strength_clip=0.0)
    assert words == "embedding:tom"
    assert "matched nothing" not in report
    expected = by_core(comfyui, "tom-of-webui", tensors, models[1], "a embedding:tom-of-webui here")
    assert torch.equal(tiny.encode(clip, "a embedding:tom here"), expected)
    assert not torch.equal(tiny.encode(clip, "a tom here"), expected)


@pytest.mark.parametrize("missing", ["", "clip_l"])
def test_a_bundle_for_sdxl_has_a_tensor_for_each_encoder(sdxl, run_node, comfyui, missing):
    """`clip_l` and `clip_g`, as the webui and OneTrainer (`StableDiffusionXLLoRASaver.py`) write them."""
    width = tiny.SDXL["context_dim"] // 2
    words = {f"bundle_emb.tom.{key}": torch.randn(1, width) for key in ("clip_l", "clip_g") if key != missing}
    tensors = layers_for(sdxl[0]) | words
    _, clip, _, found, _ = inject(run_node, sdxl, written(comfyui, f"sdxl{missing}", tensors))
    assert found == "embedding:tom"
    # For an encoder without a tensor ComfyUI takes the file's first one, which has to be of the word.
    expected = by_core(comfyui, "tom-of-sdxl", words if missing else tensors, sdxl[1], "a embedding:tom-of-sdxl here")
    assert torch.equal(tiny.encode(clip, "a embedding:tom here"), expected)


def layers_for(model, pattern="attn2.to_k"):
    """A small LoRA of one layer of the model, by kohya's names."""
    layer, (out, width) = next(iter(tiny.linear_layers(model, pattern).items()))
    name = f"lora_unet_{layer.replace('.', '_')}"
    return {
        f"{name}.lora_up.weight": torch.randn(out, 2),
        f"{name}.lora_down.weight": torch.randn(2, width),
        f"{name}.alpha": torch.tensor(2.0),
    }


def test_a_bundle_of_onetrainer(models, run_node, comfyui):
    """Its words have the name of its captions, often in angle brackets, where a prompt's name ends; and it writes
    vectors for the encoder's output beside those for its input (`StableDiffusionLoRASaver.py`)."""
    vectors = torch.randn(1, tiny.CONTEXT)
    words = {"bundle_emb.<my dog>.clip_l": vectors, "bundle_emb.<my dog>.clip_l_out": torch.randn(1, tiny.CONTEXT)}
    name = written(comfyui, "onetrainer", layers_for(models[0]) | words)
    _, clip, report, found, _ = inject(run_node, models, name)
    assert found == "embedding:my_dog"
    assert "Carries the word embedding:my_dog (the file calls it '<my dog>')" in report
    assert "has clip_l_out in the file" in report
    applied, _ = run_node("BespokeApplyEmbedding", clip=models[1], embedding={"clip_l": vectors}, name="my_dog")
    assert torch.equal(tiny.encode(clip, "a embedding:my_dog"), tiny.encode(applied, "a embedding:my_dog"))
    again, *_ = run_node("BespokeSaveLora", lora=run_node("BespokeLoadLora", lora_name=name)[0], dtype="fp32")
    kept = tensors_of(comfyui, again)
    assert all(torch.equal(kept[key], value) for key, value in words.items())


def test_a_word_without_an_encoders_key_is_read_by_each_encoder_of_its_width(models, run_node, comfyui):
    """`bundle_emb.NAME`, as the bundle converter of sd-ext writes it: no layer, and a word of CLIP's width."""
    vectors = torch.randn(2, tiny.CONTEXT)
    name = written(comfyui, "keyless", layers_for(models[0]) | {"bundle_emb.tom": vectors})
    _, clip, report, found, _ = inject(run_node, models, name)
    assert found == "embedding:tom"
    assert "matched nothing" not in report
    applied, _ = run_node("BespokeApplyEmbedding", clip=models[1], embedding={"clip_l": vectors}, name="tom")
    assert torch.equal(tiny.encode(clip, "a embedding:tom"), tiny.encode(applied, "a embedding:tom"))
    loaded, _, _ = run_node("BespokeLoadLora", lora_name=name)
    again, *_ = run_node("BespokeSaveLora", lora=loaded, filename_prefix="bundle/again", dtype="fp32")
    assert torch.equal(tensors_of(comfyui, again)["bundle_emb.tom.emb_params"], vectors)
    with pytest.raises(InputError, match="bundle_emb..clip_l, which is a word without a name"):
        inject(run_node, models, written(comfyui, "nobody", layers_for(models[0]) | {"bundle_emb..clip_l": vectors}))


def test_a_bundle_of_onetrainer_for_flux(flux, run_node, comfyui):
    """Its key of T5 is `t5` (`FluxLoRASaver.py`), and ComfyUI's is `t5xxl`; what no encoder reads is named.

    The oracle is the same vectors on the wire under ComfyUI's keys.
    """
    words = {"clip_l": torch.randn(1, tiny.CONTEXT), "t5": torch.randn(2, 64), "llama": torch.randn(1, 64)}
    tensors = layers_for(flux[0], "txt_attn.qkv") | {f"bundle_emb.tom.{key}": each for key, each in words.items()}
    _, clip, report, *_ = inject(run_node, flux, written(comfyui, "onetrainer-flux", tensors))
    embedding = {"clip_l": words["clip_l"], "t5xxl": words["t5"]}
    right, _ = run_node("BespokeApplyEmbedding", clip=flux[1], embedding=embedding, name="tom")
    assert torch.equal(tiny.encode(clip, "a embedding:tom here"), tiny.encode(right, "a embedding:tom here"))
    assert "embedding:tom has llama 1 vector of 64 numbers in the file, which no encoder of this CLIP reads." in report


def test_a_word_that_does_not_fit_is_left_out_and_named(models, run_node, comfyui):
    """The LoRA is applied all the same."""
    words = {
        "bundle_emb.wide.clip_l": torch.randn(1, 7),
        "bundle_emb.odd.clip_l": torch.ones(1, tiny.CONTEXT, dtype=torch.int32),
        "bundle_emb.good.emb_params": torch.randn(tiny.CONTEXT),
    }
    _, _, report, *_ = inject(run_node, models, written(comfyui, "odd", layers_for(models[0]) | words))
    assert "embedding:wide is left out: the file has clip_l 1 vector of 7 numbers, and this text encoder" in report
    assert "embedding:odd is left out: clip_l holds what is no finite number." in report
    assert "The clip output knows embedding:good, by" in report
    assert "Applied to 1 layers of the model" in report


def test_a_file_of_words_alone_is_no_lora(run_node, comfyui):
    name = written(comfyui, "words", {"bundle_emb.tom.clip_l": torch.randn(1, 4)})
    with pytest.raises(InputError, match=r"holds words \(tom\) and no LoRA; put it into the embeddings folder"):
        run_node("BespokeLoadLora", lora_name=name)


# --- the other readers -----------------------------------------------------------------------------------------------


def test_the_other_readers_count_no_word_as_a_layer(models, trained, run_node, comfyui, saved, caplog):
    """Inspect and Load list it; a training starts from the file; Compose and the scoped LoRA keep the word."""
    report, _ = run_node("BespokeInspectLora", lora_name=saved)
    lora, words, loaded = run_node("BespokeLoadLora", lora_name=saved)
    assert words == f"embedding:{NAME}"
    for text in (report, loaded):
        assert f"Carries the word embedding:{NAME}: clip_l 2 vectors of {tiny.CONTEXT} numbers." in text
        assert "Trigger words: embedding:my-teal." in text
    composed, told, _ = run_node("BespokeComposeLoras", loras={"lora0": lora, "lora1": dict(lora)})
    assert {name: [*parts] for name, parts in composed.words.items()} == {NAME: ["clip_l"]}
    assert f"Words: {NAME}, with their vectors as they were." in told
    model, clip, vae = models
    _, on, *_ = run_node(
        "BespokeTrainLora", model=model, clip=clip, vae=vae, images=sprite_set(3, 2, side=64, colour="teal"),
        lora=lora, rank=2, alpha=2.0, learning_rate=0.0, steps=1, batch_size=1, train_text_encoder=True,
        precision="fp32", score_pictures="off", resume=False,
    )  # fmt: skip
    assert all(torch.equal(on[key], trained[2][key]) for key in on)


def test_core_loads_the_lora_of_the_file(models, run_node, saved):
    """ComfyUI's own loader applies the layers, and leaves the word alone."""
    ours, *_ = inject(run_node, models, saved)
    cores, _ = run_node(
        "LoraLoader", model=models[0], clip=models[1], lora_name=saved, strength_model=1.0, strength_clip=1.0
    )
    assert torch.equal(tiny.predict(ours), tiny.predict(cores))

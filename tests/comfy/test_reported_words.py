"""Public bug reports on words, bundles and pivotal tuning, each replayed here under its address.

Of reports that other tests replay: T5 that learns nothing (diffusers 10313) is in test_families_words.py, a tokenizer
that fails on a vector (ComfyUI pull request 14713) in test_encoder_words.py, a resumed training that begins anew
(sd-scripts 2132) and a bundle for Flux with OneTrainer's keys (its issue 514) in test_word_and_lora.py and
test_bundles.py, a vector without a dimension of its own (diffusers 3442) in test_bundles.py.
"""

import pytest
import safetensors.torch
import tiny
import torch
from helpers import sprite_set

OUTPUTS = ("model", "clip", "lora", "embedding", "prompt_word", "loss", "run", "report")


@pytest.fixture(scope="module")
def models(comfyui):
    """(model, clip, vae): SD1.5's classes with one level of the U-Net."""
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def layers_for(model):
    """A small LoRA of one layer of the model, by kohya's names."""
    layer, (out, width) = next(iter(tiny.linear_layers(model, "attn2.to_k").items()))
    name = f"lora_unet_{layer.replace('.', '_')}"
    return {f"{name}.lora_up.weight": torch.randn(out, 2), f"{name}.lora_down.weight": torch.randn(2, width)}


def written(comfyui, name, tensors, folder="loras"):
    path = comfyui / "models" / folder / f"{name}.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path.name


def train(run_node, models, **changes):
    model, clip, vae = models
    settings = dict(
        images=sprite_set(3, 4, colour="teal", word="{word}", side=64), name="my-teal", init_text="green", rank=2,
        alpha=2.0, learning_rate=1e-3, word_learning_rate=2e-2, batch_size=1, seed=0, precision="fp32", keep="last",
        lr_schedule="constant", score_pictures="off", resume=False,
    )  # fmt: skip
    outputs = run_node("BespokeTrainWordAndLora", model=model, clip=clip, vae=vae, **settings | changes)
    return dict(zip(OUTPUTS, outputs, strict=True))


def inject(run_node, models, name, clip=None):
    return run_node(
        "BespokeInjectLora", model=models[0], clip=clip or models[1], lora_name=name, strength_model=1.0
    )  # fmt: skip


def test_a_word_with_a_space_in_its_name_is_no_unknown_layer(models, run_node, comfyui):
    """github.com/Nerogar/OneTrainer/issues/485: "lora key not loaded: bundle_emb.ema yasuhara.clip_l"."""
    vectors = torch.randn(1, tiny.CONTEXT)
    name = written(comfyui, "spaced", layers_for(models[0]) | {"bundle_emb.ema yasuhara.clip_l": vectors})
    _, clip, report, words, _ = inject(run_node, models, name)
    assert words == "embedding:ema_yasuhara"
    assert "matched nothing" not in report
    known, _ = run_node("BespokeApplyEmbedding", clip=models[1], embedding={"clip_l": vectors}, name="ema_yasuhara")
    assert torch.equal(tiny.encode(clip, "a embedding:ema_yasuhara"), tiny.encode(known, "a embedding:ema_yasuhara"))


def test_two_files_with_one_name_for_their_words_are_told_apart(models, run_node, comfyui):
    """github.com/Comfy-Org/ComfyUI/issues/3659: "conflicts between identically named embeddings in multiple bundle
    files". The later file's word counts, and the report says so."""
    names = []
    for number in (1.0, 2.0):
        tensors = layers_for(models[0]) | {"bundle_emb.tom.clip_l": torch.full((1, tiny.CONTEXT), number)}
        names.append(written(comfyui, f"tom-{number:g}", tensors))
    _, first, report, *_ = inject(run_node, models, names[0])
    assert "knows embedding:tom already" not in report
    _, both, report, *_ = inject(run_node, models, names[1], first)
    assert "The clip that is wired in knows embedding:tom already; this file's counts." in report
    _, second, *_ = inject(run_node, models, names[1])
    assert torch.equal(tiny.encode(both, "a embedding:tom"), tiny.encode(second, "a embedding:tom"))
    assert not torch.equal(tiny.encode(both, "a embedding:tom"), tiny.encode(first, "a embedding:tom"))


def test_each_vector_of_a_word_learns(models, run_node):
    """github.com/huggingface/diffusers/issues/4450: several placeholders were made, and prompts held the first."""
    from bespoke.nodes.bridge.training_model.pseudo_word import embedding_table, text_encoders, token_ids

    tokenizer, encoder = text_encoders(models[1])["clip_l"]
    start = embedding_table(models[1], encoder)[token_ids(tokenizer, "a green round thing")]
    result = train(run_node, models, init_text="a green round thing", vectors=4, steps=1)
    moved = (result["embedding"]["my-teal"]["clip_l"] - start).abs().amax(dim=-1)
    assert moved.shape == (4,)
    assert moved.min() > 1e-3


def test_more_steps_after_the_last_one_keep_the_word(models, run_node):
    """github.com/Nerogar/OneTrainer/issues/351: a finished training with EMA that is given more steps went on with the
    LoRA and began the embedding anew."""
    whole = train(run_node, models, steps=4, ema=0.5)
    train(run_node, models, steps=2, ema=0.5, resume=True)
    again = train(run_node, models, steps=4, ema=0.5, resume=True)
    assert again["loss"] == whole["loss"]
    assert torch.equal(again["embedding"]["my-teal"]["clip_l"], whole["embedding"]["my-teal"]["clip_l"])
    assert all(torch.equal(again["lora"][key], tensor) for key, tensor in whole["lora"].items())


def test_a_file_with_another_programs_key_of_t5_is_named(flux, run_node, comfyui):
    """github.com/Nerogar/OneTrainer/issues/514: OneTrainer's embedding for Flux has `clip_g` and `t5`, and ComfyUI
    looks for `clip_l` and `t5xxl`: it takes the first tensor for both, which fits CLIP-L by luck."""
    tensors = {"clip_g": torch.randn(2, flux_width(flux, "clip_l")), "t5": torch.randn(2, flux_width(flux, "t5xxl"))}
    name = written(comfyui, "onetrainer-word", tensors, "embeddings")
    report, _ = run_node("BespokeInspectEmbedding", clip=flux[1], embedding_name=name)
    assert "clip_l vector 1: length" in report
    assert "The file's t5 is OneTrainer's key for t5xxl, which ComfyUI does not look for" in report


def flux_width(flux, key):
    from bespoke.nodes.bridge.training_model.pseudo_word import embedding_width, text_encoders

    return embedding_width(text_encoders(flux[1])[key][1])

"""A word in every text encoder that ComfyUI has: T5, UMT5, Qwen, Gemma, Llama, Mistral, BERT, at small random size.

Oracles: finite differences for the gradient; ComfyUI's own `CLIPTextEncode` of the saved file for what a word means.
"""

from __future__ import annotations

import functools

import encoders
import pytest
import torch
from bespoke.nodes.bridge.dataset.conditioning import encode_prompt
from bespoke.nodes.bridge.training_model.encoder_forecast import encoder_memory
from bespoke.nodes.bridge.training_model.learned_encoder import blocks_of
from bespoke.nodes.bridge.training_model.pseudo_word import (
    clip_with_pseudo_word,
    not_from_files,
    spaces_needed,
    text_encoders,
    token_ids,
    vocabulary,
)
from bespoke.nodes.bridge.training_model.spelling import spelling
from bespoke.nodes.bridge.training_model.text_encoder import prepare_text_encoder
from bespoke.training.embedding import nearest_words
from bespoke.training.errors import InputError
from bespoke.training.measure import LiveBytes
from helpers import weights_hash

# One of each transformer of ComfyUI's with a tokenizer of each kind: T5 beside CLIP-L, UMT5 and Gemma 2 with a
# vocabulary that a checkpoint has, Qwen 3.
FAST = {"flux", "wan", "z_image", "lumina2"}
each = pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in encoders.ROWS]
)
# ComfyUI's tokenizers that compare each token with a number, which fails on the vector that a file holds.
FAILS_ON_FILES = {"qwen_image", "hunyuan_video", "kandinsky5"}
PROMPT = "a photo of embedding:{} on white"


@functools.cache
def words_for(name):
    """{encoder: two random vectors of its vocabulary's median length}."""
    clip, out = encoders.made(name), {}
    for key, (_, encoder) in text_encoders(clip).items():
        words = vocabulary(clip, encoder)
        direction = torch.randn(2, words.width, generator=torch.Generator().manual_seed(len(out)))
        out[key] = direction / direction.norm(dim=-1, keepdim=True) * words.median
    return out


def with_word(clip, vectors, name="w"):
    return clip_with_pseudo_word(clip, name, {key: functools.partial(vectors.__getitem__, key) for key in vectors})


def parts(encoded):
    """The tensors of an encoded prompt that depend on its tokens' vectors."""
    cond, extra = encoded
    more = [value for _, value in sorted(extra.items()) if torch.is_tensor(value) and value.is_floating_point()]
    return [cond, *(value for value in more if value.ndim > 1)]


def same(found, right, tolerance=1e-5):
    for one, other in zip(parts(found), parts(right), strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@each
def test_gradient_of_each_encoder(name):
    """Of a random projection of the conditioning, checkpointed, by central differences of fourth order; no weight
    changes, none has a gradient, and the user's layers are as they were."""
    clip = encoders.made(name)
    assert set(text_encoders(clip)) == set(encoders.ROWS[name].keys)
    before = weights_hash(clip.cond_stage_model)
    vectors = {key: torch.nn.Parameter(value.clone()) for key, value in words_for(name).items()}
    tokenizer, prompt = with_word(clip, vectors), PROMPT.format("w")
    with prepare_text_encoder(clip, None, list(vectors), checkpointing=True) as text:

        def value():
            found = parts(text.encode([prompt], tokenizer)[0])
            seeds = torch.Generator().manual_seed(1)
            sums = [(part * torch.randn(part.shape, generator=seeds)).double().sum() for part in found]
            return sum(sums) / sum(part.numel() for part in found) ** 0.5

        value().backward()
        for key, vector in vectors.items():
            start = vector.detach().clone()
            direction = torch.randn(vector.shape, generator=torch.Generator().manual_seed(2))
            expected = float((vector.grad * direction).sum())
            slopes = []
            with torch.no_grad():

                def at(distance, vector=vector, start=start, direction=direction):
                    vector.copy_(start + distance * direction)
                    return float(value())

                for step in (1e-3, 3e-3, 1e-2):  # float32: rounding and curvature bound the step from both sides
                    near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
                    slopes.append((8 * near - far) / (12 * step))
                vector.copy_(start)
            assert expected == pytest.approx(min(slopes, key=lambda x: abs(x - expected)), rel=5e-3), (key, slopes)
    assert weights_hash(clip.cond_stage_model) == before
    for layer in clip.cond_stage_model.modules():
        assert not {"forward", "forward_comfy_cast_weights"} & set(vars(layer))
        assert not layer._forward_pre_hooks
        assert all(parameter.grad is None for parameter in layer._parameters.values() if parameter is not None)


@each
def test_a_saved_word_is_the_conditioning_of_the_training(run_node, comfyui, name):
    """By core's CLIPTextEncode of the file, with the folder that ComfyUI's loaders give; and of the word on the wire.

    The exception: three of ComfyUI's tokenizers fail on a file's vector, and `not_from_files` says so.
    """
    clip, vectors = encoders.made(name).clone(), words_for(name)
    file = f"every-{name.replace('_', '-')}"
    run_node("BespokeSaveEmbedding", embedding=vectors, name=file)
    with prepare_text_encoder(clip, None, list(vectors)) as text, torch.no_grad():
        (in_training,) = text.encode([PROMPT.format(file)], with_word(clip, vectors, file))
    on_wire, word = run_node("BespokeApplyEmbedding", clip=clip, embedding=vectors, name=file)
    assert word == f"embedding:{file}"
    (found,) = run_node("CLIPTextEncode", clip=on_wire, text=PROMPT.format(file))
    same(in_training, found[0])
    plain = encode_prompt(clip, "a photo of on white")
    assert plain[0].shape != found[0][0].shape or (plain[0] - found[0][0]).abs().max() > 1e-3
    assert "no embeddings folder" in not_from_files(clip, vectors)
    clip.tokenizer = encoders.with_embeddings_folder(clip.tokenizer)
    if name in FAILS_ON_FILES:
        assert "fails on a prompt with an embedding's file" in not_from_files(clip, vectors)
        with pytest.raises(RuntimeError, match="ambiguous"):
            run_node("CLIPTextEncode", clip=clip, text=PROMPT.format(file))
        return
    assert not_from_files(clip, vectors) == ""
    (from_file,) = run_node("CLIPTextEncode", clip=clip, text=PROMPT.format(file))
    same(from_file[0], found[0], 0)


@each
def test_the_host_gives_a_folder_as_the_row_says(name):
    """ComfyUI's own class: with a folder for embeddings, which of its tokenizers keep it."""
    row = encoders.ROWS[name]
    clip = encoders.make(name, folder="/embeddings")
    kept = [tokenizer.embedding_directory for tokenizer, _ in text_encoders(clip).values()]
    assert all(kept) == row.folder
    assert ("no embeddings folder" in not_from_files(clip, text_encoders(clip))) == (not row.folder)


@each
def test_nearest_words_of_each_vocabulary(name):
    """A vector that is a word's own row, times 1.5, is nearest to that word with cosine 1; the row is what the encoder
    reads for the token, Gemma's factor included. Its spelling is the word, or the pieces that the tokenizer has."""
    clip = encoders.made(name)
    for tokenizer, encoder in text_encoders(clip).values():
        words, ids = vocabulary(clip, encoder), token_ids(tokenizer, "red")
        layer = encoder.transformer.get_input_embeddings()
        read = layer(torch.tensor(ids), out_dtype=torch.float32).float()
        assert torch.allclose(words[ids], read, atol=1e-6)
        assert words.median == pytest.approx(float(words[list(range(words.words))].norm(dim=-1).median()))
        (token, cosine), *_ = nearest_words(read[0] * 1.5, words)
        assert (token, cosine) == (ids[0], pytest.approx(1.0, abs=1e-5))
        assert "".join(spelling(tokenizer, each).removeprefix("…") for each in ids) == "red"


def test_spaces_that_a_prompt_needs(comfyui):
    """Mistral's template sets text right before the prompt, where ComfyUI finds no word; CLIP and T5 have none."""
    one = {"mistral3_24b": torch.ones(1, encoders.WIDTH)}
    before, _ = spaces_needed(with_word(encoders.made("flux2"), one), "w")
    assert before == " "
    assert spaces_needed(with_word(encoders.made("flux"), {"t5xxl": torch.ones(1, encoders.WIDTH)}), "w") == ("", "")


def test_clip_only(comfyui):
    assert set(text_encoders(encoders.made("flux"), "CLIP only")) == {"clip_l"}
    with pytest.raises(InputError, match="encoders is 'CLIP only' and the text encoder .* holds no CLIP; choose 'all'"):
        text_encoders(encoders.made("wan"), "CLIP only")


def test_weights_are_read_as_they_lie(comfyui):
    """A bfloat16 T5: its matrices are the user's own objects, and the conditioning is core's."""
    clip = encoders.make("pixart", torch.bfloat16)
    vector = {"t5xxl": torch.nn.Parameter(words_for("pixart")["t5xxl"].clone())}
    tokenizer, prompt = with_word(clip, vector), PROMPT.format("w")
    with torch.no_grad():
        right = encode_prompt(tokenizer, prompt)
    with prepare_text_encoder(clip, None, ["t5xxl"]) as text:
        own, theirs = (dict(each.named_parameters()) for each in (clip.cond_stage_model, text.model))
        matrices = [at for at, weight in own.items() if weight.ndim == 2]
        assert len(matrices) == 16  # two blocks of 4 and 3, the words, and the first block's bias of positions
        assert all(theirs[at] is own[at] and own[at].dtype == torch.bfloat16 for at in matrices)
        (found,) = text.encode([prompt], tokenizer)
        same(found, right)
        found[0].square().mean().backward()
    assert vector["t5xxl"].grad.abs().max() > 0


def test_the_forecast_of_an_encoder(comfyui):
    """What the forward pass keeps and the peak of both passes, against the bytes that the real passes take."""
    clip = encoders.made("wan")
    encoder, vectors = clip.cond_stage_model.umt5xxl, words_for("wan")
    tokens = [token for token, _ in clip.tokenizer.clip_umt5xxl.tokenize_with_weights("a photo of a word")[0]]
    forecast = encoder_memory(encoder, tokens, 1, None)
    vector = torch.nn.Parameter(vectors["umt5xxl"][:1].clone())
    tokenizer = with_word(clip, {"umt5xxl": vector})
    with (
        prepare_text_encoder(clip, None, ["umt5xxl"]) as text,
        LiveBytes([*text.model.parameters(), vector]) as live,
    ):
        ((cond, _),) = text.encode(["a photo of embedding:w"], tokenizer)
        kept = live.now
        cond.square().mean().backward()
    assert forecast.weights == sum(each.numel() * each.element_size() for each in encoder.parameters())
    assert forecast.kept == pytest.approx(kept, rel=0.25)
    assert forecast.peak == pytest.approx(live.peak, rel=0.25)
    assert encoder_memory(encoder, tokens, 3, None).kept == 3 * forecast.kept


@pytest.mark.parametrize("name", ["wan", "auraflow", "ovis"])
def test_a_prompt_is_computed_up_to_its_end_where_padding_counts_for_nothing(name):
    """The conditioning is core's own, of a plain prompt and of one with weights; a token less would change it.

    How many tokens the transformer gets is counted by hand: the tokens up to the end, or to the first padding.
    """
    clip, vectors = encoders.made(name), words_for(name)
    tokenizer = with_word(clip, vectors)
    for prompt in ("a photo of embedding:w on white", "a (photo:1.4) of embedding:w", ""):
        ((rows),) = tokenizer.tokenize(prompt).values()
        numbers = [-1 if torch.is_tensor(token) else token for token, *_ in rows[0]]
        end = {"wan": (1, 1), "auraflow": (2, 1), "ovis": (151643, 0)}[name]  # its number, whether it counts itself
        expected = numbers.index(end[0]) + end[1]
        seen = []
        with prepare_text_encoder(clip, None, list(vectors)) as text, torch.no_grad():
            (part,) = (getattr(text.model, at) for at in vars(text.model)["_modules"] if hasattr(text.model, at))
            part.transformer.register_forward_pre_hook(
                lambda *given, seen=seen: seen.append(given[2]["embeds"].shape[1]), with_kwargs=True
            )
            (found,) = text.encode([prompt], tokenizer)
        right = encode_prompt(tokenizer, prompt)
        assert seen == [expected]
        assert expected < len(numbers) / 4
        assert found[0].shape == right[0].shape
        same(found, right)
        assert right[0][0, expected - len(numbers) - 1].abs().max() > 1e-3  # the last token that counts
        assert not right[0][0, expected - len(numbers) :].any()


def test_a_prompt_whose_padding_is_read_is_computed_whole(comfyui):
    """Flux: T5 attends to its padding, so a shorter prompt would be another conditioning."""
    clip, vectors = encoders.made("flux"), words_for("flux")
    seen = []
    with prepare_text_encoder(clip, None, list(vectors)) as text, torch.no_grad():
        text.model.t5xxl.transformer.register_forward_pre_hook(
            lambda *given: seen.append(given[2]["embeds"].shape[1]), with_kwargs=True
        )
        text.encode(["a photo of embedding:w"], with_word(clip, vectors))
    assert seen == [256]


def test_blocks_are_found(comfyui):
    assert len(blocks_of(encoders.made("z_image").cond_stage_model.qwen3_4b)) == 3
    assert len(blocks_of(encoders.made("wan").cond_stage_model.umt5xxl)) == 2


def test_another_name_in_a_prompt_is_left_out_as_one_without_a_file(comfyui):
    """Wan's tokenizer has no embeddings folder. With a word on the wire ComfyUI looks for other names in no folder:
    the tokens are those of the prompt without the name."""
    clip, prompt = encoders.made("wan"), "a embedding:w and embedding:unknown here"
    known = with_word(clip, words_for("wan"))
    (tokens,) = known.tokenize(prompt)["umt5xxl"]
    (right,) = with_word(clip, words_for("wan")).tokenize("a embedding:w and here")["umt5xxl"]
    assert [token for token, *_ in tokens if not torch.is_tensor(token)] == [
        token for token, *_ in right if not torch.is_tensor(token)
    ]
    assert sum(torch.is_tensor(token) for token, *_ in tokens) == 2

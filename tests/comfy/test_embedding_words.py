"""Words in prompts and embedding files, read as ComfyUI's `load_embed` and its tokenizers read them.

ComfyUI is the oracle here: it defines what `embedding:name` in a prompt means.
"""

import inspect

import comfy.sd1_clip
import pytest
import safetensors.torch
import tiny
import torch

WIDTHS = {"clip_l": 48, "clip_g": 64}
# How a prompt can spell a word, and what stands around it.
SPELLINGS = (
    "embedding:my/cat",
    "a photo of embedding:my/cat, sitting",
    "embedding:my/cat,, x",
    "embedding:my/cat[a:b:3] in the rain",
    "embedding:my/cat<lora:x:1>",
    "embedding:my/cat,[x",
    "(embedding:my/cat:1.3) and embedding:my/cat",
    "embedding:my/cat.safetensors on a table",
    "embedding:my/cat/ on a table",
    "embedding:./my/cat",
    "embedding:my/../my/cat",
    "embedding:my//cat",
    "embedding:my/cats",
    "embedding:my/cat.",
    "embedding:[my/cat",
    "aembedding:my/cat",
)
BRACKETS = 3  # of these have a bracket behind the name


@pytest.fixture(scope="module")
def two(comfyui):
    """SDXL's pair of text encoders, of two widths as in SDXL."""
    import comfy.sd
    import comfy.sdxl_clip

    configs = {
        f"{key}_model_config": {
            "hidden_size": width,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "projection_dim": width,
        }
        for key, width in WIDTHS.items()
    }

    class Target:
        params: dict = {}  # noqa: RUF012 (what ComfyUI's own targets are)
        clip, tokenizer = comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer

    out = comfy.sd.CLIP(Target, model_options={**configs, "dtype": torch.float32})
    tiny.fill(out.cond_stage_model, 1)
    return out


def with_folder(clip, folder):
    """A clone that reads embeddings from the folder alone."""
    import copy

    out = clip.clone()
    out.tokenizer = copy.copy(clip.tokenizer)
    for key in WIDTHS:
        tokenizer = copy.copy(getattr(clip.tokenizer, key))
        tokenizer.embedding_directory = [str(folder)]
        setattr(out.tokenizer, key, tokenizer)
    return out


def vectors(seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(count, width, generator=generator) for key, width in WIDTHS.items()}


@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("clip_g",)])
def test_a_word_on_the_wire_is_a_file_of_that_name(two, run_node, tmp_path, keys):
    """In every spelling the conditioning is what ComfyUI makes of a file with these vectors."""
    (tmp_path / "with" / "my").mkdir(parents=True)
    (tmp_path / "without").mkdir()
    word = {key: value for key, value in vectors().items() if key in keys}
    safetensors.torch.save_file(word, tmp_path / "with" / "my" / "cat.safetensors")
    from_file = with_folder(two, tmp_path / "with")
    bare = with_folder(two, tmp_path / "without")
    applied, prompt_word = run_node("BespokeApplyEmbedding", clip=bare, embedding=word, name="my/cat")
    assert prompt_word == "embedding:my/cat"
    assert not torch.equal(tiny.encode(applied, prompt_word), tiny.encode(bare, prompt_word))
    used = 0
    for text in SPELLINGS:
        expected = tiny.encode(from_file, text)
        assert torch.equal(tiny.encode(applied, text), expected), text
        used += not torch.equal(expected, tiny.encode(bare, text))
    # The last four are no word of that name. ComfyUI 0.24 does not end a name at a bracket.
    ends_at_bracket = "[<" in inspect.getsource(comfy.sd1_clip.SDTokenizer._try_get_embedding)
    assert used == len(SPELLINGS) - 4 - (0 if ends_at_bracket else BRACKETS)
    # A file of the same name loses, also for an encoder that the word on the wire has nothing for.
    safetensors.torch.save_file(vectors(1), tmp_path / "without" / "other.safetensors")
    applied, prompt_word = run_node("BespokeApplyEmbedding", clip=bare, embedding=word, name="other")
    assert torch.equal(tiny.encode(applied, prompt_word), tiny.encode(from_file, "embedding:my/cat"))


V = vectors(2)
LAYOUTS = {
    "keys": {"clip_l": V["clip_l"], "clip_g": V["clip_g"]},
    "one key": {"clip_g": V["clip_g"], "other": V["clip_l"]},
    "nameless": {"emb_params": V["clip_l"]},
    "nameless, wide": {"emb_params": V["clip_g"]},
    "one vector": {"emb_params": V["clip_l"][0]},
    "two nameless": {"b": V["clip_g"], "a": V["clip_l"]},
    "bundle": {"lora_up": torch.ones(3, 3), "bundle_emb.cat.clip_l": V["clip_l"], "bundle_emb.cat.clip_g": V["clip_g"]},
    "bundle of two": {"bundle_emb.a.clip_l": V["clip_l"], "bundle_emb.b.clip_l": V["clip_l"] + 1, "x": V["clip_g"]},
    "bundle of old": {"a": V["clip_g"], "bundle_emb.cat.string_to_param.*": V["clip_l"]},
    "bundle of both": {"bundle_emb.a.string_to_param.*": V["clip_g"], "bundle_emb.b.clip_l": V["clip_l"]},
    "another encoder's": {"t5xxl": torch.ones(1, 80)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_read_as_comfyui_reads_it(two, run_node, comfyui, layout):
    from bespoke.nodes.textual_inversion.inspect import vectors_for
    from comfy.sd1_clip import load_embed

    name = f"layout {layout}".replace(" ", "-")
    folder = comfyui / "models" / "embeddings"
    safetensors.torch.save_file(LAYOUTS[layout], folder / f"{name}.safetensors")
    read = safetensors.torch.load_file(folder / f"{name}.safetensors")
    core = {key: load_embed(name, [str(folder)], width, key) for key, width in WIDTHS.items()}
    assert all(torch.equal(vectors_for(key, read, name), core[key]) for key in WIDTHS)
    used = {key: value for key, value in core.items() if value.shape[-1] == WIDTHS[key]}  # as its `process_tokens`
    if not used:
        with pytest.raises(ValueError, match="words have 48 numbers"):
            run_node("BespokeInspectEmbedding", clip=two, embedding_name=f"{name}.safetensors")
        return
    report, _ = run_node("BespokeInspectEmbedding", clip=two, embedding_name=f"{name}.safetensors")
    for key in WIDTHS:
        lines = [line for line in report.splitlines() if line.startswith(f"{key} vector")]
        rows = used[key].reshape(-1, WIDTHS[key]) if key in used else []
        assert len(lines) == len(rows)
        assert all(f"length {float(row.norm()):.3f} " in line for row, line in zip(rows, lines, strict=True))
        assert (f"{key}: the file's tensor" in report) == (key not in used)


def test_words_of_different_widths_in_a_bundle_are_refused(two, run_node, comfyui):
    bundle = {"bundle_emb.a.string_to_param.*": V["clip_l"], "bundle_emb.b.string_to_param.*": V["clip_g"]}
    safetensors.torch.save_file(bundle, comfyui / "models" / "embeddings" / "widths.safetensors")
    with pytest.raises(ValueError, match="different widths in its bundle"):
        run_node("BespokeInspectEmbedding", clip=two, embedding_name="widths.safetensors")


@pytest.mark.parametrize(
    ("folder", "node", "widget", "inputs"),
    [
        ("embeddings", "BespokeInspectEmbedding", "embedding_name", {"clip": None}),
        ("loras", "BespokeLoadLora", "lora_name", {}),
        ("loras", "BespokeInjectLora", "lora_name", {"model": None}),
        ("loras", "BespokeInspectLora", "lora_name", {}),
    ],
)
def test_files_that_are_never_opened_are_not_listed(run_node, comfyui, folder, node, widget, inputs):
    import nodes

    for name in ("old.pt", "old.bin", "new.safetensors"):
        (comfyui / "models" / folder / name).write_bytes(b"")
    schema = nodes.NODE_CLASS_MAPPINGS[node].define_schema()
    options = next(item.options for item in schema.inputs if item.id == widget)
    assert "new.safetensors" in options
    assert not [name for name in options if name.endswith((".pt", ".bin"))]
    with pytest.raises(ValueError, match=r"\d+ files there, .pt and the like, are not listed"):
        run_node(node, **{widget: "none"}, **inputs)
    for name in ("old.pt", "old.bin", "new.safetensors"):
        (comfyui / "models" / folder / name).unlink()

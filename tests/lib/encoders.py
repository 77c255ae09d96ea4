"""A small random text encoder of every class in ComfyUI that reads embeddings in prompts, with the tokenizer it has.

`made(name)` returns a CLIP of a name in `ROWS`; tests must not change it. Vocabularies that ComfyUI does not ship (they
lie in the checkpoints) are made here from a few sentences.
"""

from __future__ import annotations

import copy
import functools
import importlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import families
import tiny
import torch

WIDTH = 32
_LLAMA = families._LLAMA | {"hidden_size": WIDTH}
_T5 = families._T5 | {"d_model": WIDTH}
_CLIP = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "projection_dim": 24,
}


@dataclass(frozen=True)
class Row:
    """One text encoder.

    module: of `comfy.text_encoders`. model, tokenizer: names in it; a model may be a function that gives the class, and
    a tokenizer one of our own that does.
    keys: the embedding keys of its encoders. configs: {attribute: its configuration}. data: the vocabulary that a
    checkpoint would have. options: arguments of the function `model`. folder: whether ComfyUI gives its tokenizers the
    embeddings folder. finish: called with the model, before it gets its weights.
    """

    module: str
    model: str
    tokenizer: str | Callable[[], type]
    keys: tuple[str, ...]
    configs: Mapping[str, Any]
    data: Callable[[], dict[str, Any]] = dict
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: bool = True
    finish: Callable[[Any], None] = lambda model: None


def sentencepiece_model(**ids: int) -> torch.Tensor:
    """A vocabulary of about 90 pieces, a serialised model as bytes. ids: of its special pieces."""
    import sentencepiece

    out = io.BytesIO()
    colours, shapes, grounds = ("red", "blue", "teal"), ("circle", "ring", "heart"), ("white", "black")
    lines = [f"a photo of a {c} {s} on {g}" for c in colours for s in shapes for g in grounds]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=90, hard_vocab_limit=False, minloglevel=2,
        num_threads=1, **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} | ids,
    )  # fmt: skip
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)


def gemma_model() -> dict[str, Any]:
    return {"spiece_model": sentencepiece_model(bos_id=2, unk_id=3)}


def newbie_models() -> dict[str, Any]:
    jina = sentencepiece_model(pad_id=1, bos_id=0, eos_id=2, unk_id=3)
    return {"gemma_spiece_model": gemma_model()["spiece_model"], "jina_spiece_model": jina}


def ltx_projection(model: Any) -> None:
    """LTX 2's projection of all layers' states, for a small Gemma. ComfyUI's has the width of the whole one."""
    states = model.gemma3_12b.num_layers + 1
    model.text_projection_type = "single_linear"
    model.text_embedding_projection = model.gemma3_12b.operations.Linear(WIDTH * states, WIDTH, bias=False)


def mistral_tokenizer(kind: str = "flux", name: str = "Flux2Tokenizer") -> type:
    """The tokenizer of Flux 2 or ERNIE over a small vocabulary of bytes and a few words.

    ComfyUI makes its own by a class of transformers that has other arguments from version 5 on.
    kind, name: module and name of ComfyUI's class.
    """
    import comfy.sd1_clip
    import tokenizers
    import transformers

    class Plain:
        @staticmethod
        def from_pretrained(path: str, **_: Any) -> Any:
            out = tokenizers.Tokenizer(tokenizers.models.BPE())
            out.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
            special += [f"<special_{i}>" for i in range(7, 12)]  # 11 is the padding
            trainer = tokenizers.trainers.BpeTrainer(
                vocab_size=400, special_tokens=special, show_progress=False,
                initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            )  # fmt: skip
            out.train_from_iterator(["a photo of a red circle on white"] * 9, trainer)
            return transformers.PreTrainedTokenizerFast(tokenizer_object=out)

    class Words(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                "", max_length=99999999, pad_with_end=False, embedding_directory=embedding_directory,
                embedding_size=5120, embedding_key="mistral3_24b", tokenizer_class=Plain, has_end_token=False,
                pad_to_max_length=False, min_length=1, pad_token=11, start_token=1, pad_left=True, disable_weights=True,
            )  # fmt: skip

    own = getattr(importlib.import_module(f"comfy.text_encoders.{kind}"), name)

    class Small(own):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            attribute = "mistral3_24b" if kind == "flux" else "ministral3_3b"
            comfy.sd1_clip.SD1Tokenizer.__init__(
                self, embedding_directory=embedding_directory, name=attribute, tokenizer=Words
            )
            self.llama_template = "[SYSTEM_PROMPT]You describe pictures.[/SYSTEM_PROMPT][INST]{}[/INST]"

    return Small


_28 = {"num_hidden_layers": 28}  # the conditioning is the hidden states after the layers 9, 18 and 27
_36 = {"num_hidden_layers": 36}
ROWS = {
    "flux": Row("flux", "flux_clip", "FluxTokenizer", ("clip_l", "t5xxl"), {"clip_l": _CLIP, "t5xxl": _T5}),
    "pixart": Row("pixart_t5", "pixart_te", "PixArtTokenizer", ("t5xxl",), {"t5xxl": _T5}),
    # Its first T5 has ReLUs, at whose kinks differences are no gradient: here they are the smooth kind of the others.
    "cosmos": Row(
        "cosmos", "te", "CosmosT5Tokenizer", ("t5xxl",), {"t5xxl": _T5 | {"dense_act_fn": "gelu_pytorch_tanh"}},
    ),
    "wan": Row(
        "wan", "te", "WanT5Tokenizer", ("umt5xxl",), {"umt5xxl": _T5 | {"vocab_size": 128}},
        lambda: {"spiece_model": sentencepiece_model()}, folder=False,
    ),
    "auraflow": Row(
        "aura_t5", "AuraT5Model", "AuraT5Tokenizer", ("pile_t5xl",), {"pile_t5xl": _T5}, folder=False,
    ),
    "hunyuan_dit": Row(
        "hydit", "HyditModel", "HyditTokenizer", ("chinese_roberta", "mt5xl"),
        {
            "hydit_clip": {
                "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            },
            "mt5xl": _T5 | {"vocab_size": 128},
        },
        lambda: {"mt5xl.spiece_model": sentencepiece_model()}, folder=False,
    ),
    "qwen_image": Row("qwen_image", "te", "QwenImageTokenizer", ("qwen25_7b",), {"qwen25_7b": _LLAMA}, folder=False),
    "omnigen2": Row("omnigen2", "te", "Omnigen2Tokenizer", ("qwen25_3b",), {"qwen25_3b": _LLAMA}, folder=False),
    "z_image": Row("z_image", "te", "ZImageTokenizer", ("qwen3_4b",), {"qwen3_4b": _LLAMA}),
    "klein": Row("flux", "klein_te", "KleinTokenizer", ("qwen3_4b",), {"qwen3_4b": _LLAMA | _28}),
    "ovis": Row("ovis", "te", "OvisTokenizer", ("qwen3_2b",), {"qwen3_2b": _LLAMA}, folder=False),
    "krea2": Row("krea2", "te", "Krea2Tokenizer", ("qwen3vl_4b",), {"qwen3vl_4b": _LLAMA | _36}),
    "kandinsky5": Row(
        "kandinsky5", "te", "Kandinsky5Tokenizer", ("qwen25_7b", "clip_l"),
        {"qwen25_7b": _LLAMA, "clip_l": _CLIP}, folder=False,
    ),
    "hunyuan_video": Row(
        "hunyuan_video", "hunyuan_video_clip", "HunyuanVideoTokenizer", ("clip_l", "llama"),
        {"clip_l": _CLIP, "llama": _LLAMA | {"num_hidden_layers": 4}},
    ),
    "lumina2": Row(
        "lumina2", "te", "LuminaTokenizer", ("gemma2_2b",), {"gemma2_2b": _LLAMA | {"vocab_size": 128}}, gemma_model,
        folder=False,
    ),
    "gemma3": Row(
        "lumina2", "te", "NTokenizer", ("gemma3_4b",), {"gemma3_4b": _LLAMA | {"vocab_size": 128}}, gemma_model,
        {"model_type": "gemma3_4b"}, folder=False,
    ),
    "flux2": Row(
        "flux", "flux2_te", mistral_tokenizer, ("mistral3_24b",),
        {"mistral3_24b": _LLAMA | {"num_hidden_layers": 31, "vocab_size": 512}},
    ),
    # ComfyUI's tokenizer of ERNIE has the key of Flux 2's.
    "ernie": Row(
        "ernie", "te", functools.partial(mistral_tokenizer, "ernie", "ErnieTokenizer"), ("mistral3_24b",),
        {"ministral3_3b": _LLAMA | {"vocab_size": 512}},
    ),
    # Both of its encoders take the configuration of no name.
    "newbie": Row(
        "newbie", "te", "NewBieTokenizer", ("gemma3_4b", "jina_clip_2"),
        {"": {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
              "vocab_size": 128}},
        newbie_models, folder=False,
    ),
    "ltx2": Row(
        "lt", "ltxav_te", "LTXAVGemmaTokenizer", ("gemma3_12b",), {"": _LLAMA | {"vocab_size": 128}}, gemma_model,
        {"text_projection_type": "of the test"}, folder=False, finish=ltx_projection,
    ),
    # ComfyUI pads the CLIPs' encodings to the width of T5-XXL, so T5's is that one.
    "sd3": Row(
        "sd3_clip", "sd3_clip", "SD3Tokenizer", ("clip_l", "clip_g", "t5xxl"),
        {"clip_l": _CLIP, "clip_g": _CLIP, "t5xxl": _T5 | {"d_model": 4096}},
    ),
}  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float32, folder: str | None = None):
    """ComfyUI's CLIP of a row. folder: that of the embeddings."""
    import comfy.sd

    row = ROWS[name]
    module = importlib.import_module(f"comfy.text_encoders.{row.module}")
    kind = getattr(module, row.model)

    class Target:
        params: dict = {}  # noqa: RUF012 (what ComfyUI's own targets are)
        clip = kind if isinstance(kind, type) else kind(**row.options)
        tokenizer = getattr(module, row.tokenizer) if isinstance(row.tokenizer, str) else row.tokenizer()

    options = {f"{part}_model_config": config for part, config in row.configs.items()} | {"dtype": dtype}
    out = comfy.sd.CLIP(Target, embedding_directory=folder, model_options=options, tokenizer_data=row.data())
    for part in list(out.cond_stage_model.modules()):
        for name in ("visual", "vision_model", "multi_modal_projector"):
            if hasattr(part, name):
                delattr(part, name)  # half a billion weights that encode pictures in a prompt; no prompt here has one
    row.finish(out.cond_stage_model)
    tiny.fill(out.cond_stage_model, 1)
    return out


made = functools.cache(make)


def with_embeddings_folder(tokenizer: Any) -> Any:
    """The tokenizer with ComfyUI's embeddings folder, whether its class passes the loader's on or not."""
    import comfy.sd1_clip
    import folder_paths

    out = copy.copy(tokenizer)
    for attribute, one in list(vars(tokenizer).items()):
        if isinstance(one, comfy.sd1_clip.SDTokenizer):
            copied = copy.copy(one)
            copied.embedding_directory = folder_paths.get_folder_paths("embeddings")
            setattr(out, attribute, copied)
    return out

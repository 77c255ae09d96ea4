"""The spellings of a layer's name by program, and one common name for putting the layers of two files together.

    ComfyUI     diffusion_model.input_blocks.4.1.attn2.to_k      text_encoders.clip_l.transformer.text_model...
    kohya       lora_unet_input_blocks_4_1_attn2_to_k            lora_te1_text_model_encoder_layers_0_...
                oft_unet_ in files of its own OFT
    diffusers   unet.down_blocks.1.attn2.to_k, transformer....   text_encoder.text_model.encoder.layers.0....
    PEFT        base_model.model. before diffusers' name
    LyCORIS     lycoris_ before kohya's name

kohya writes dots as underscores, so its names are not unique: a table of a model's layers is needed to read them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

COMFY_PREFIX = "diffusion_model."
TEXT_PREFIX = "text_encoders."  # ComfyUI's own name for a text encoder's layer is this and the layer's
KOHYA_PREFIX = "lora_unet_"  # also of transformers
UNET_PREFIX = "unet."  # diffusers' for a U-Net
TRANSFORMER_PREFIX = "transformer."  # diffusers' for a transformer
_KOHYA_TEXT, _DIFFUSERS_TEXT = "lora_te", "text_encoder"
_PEFT, _LYCORIS, _ONETRAINER = "base_model.model.", "lycoris_", "lora_transformer_"
_KOHYA_OFT = "oft_unet_"
_KOHYA_AS_DIFFUSERS = "kohya (diffusers' layer names)"

_UNET_BLOCKS = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\b")
_TEXT_ENCODER = re.compile(rf"({_DIFFUSERS_TEXT}(?:_\d)?)\.")
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_ANY_TEXT = re.compile(
    rf"{_KOHYA_TEXT}(\d?)_|{_DIFFUSERS_TEXT}(?:_(\d))?\.|{re.escape(TEXT_PREFIX)}clip_([lgh])\.transformer\."
)
# Modules whose layers kohya writes behind an underscore.
_MODULES = re.compile(
    r"(?<=\.)(self_attn|cross_attn|img_attn|txt_attn|attention|attn\d?|feed_forward|ffn|ff|ff_context|img_mlp|txt_mlp|mlp)_"
    r"(?!norm)"
)
_UNDERSCORED = re.compile(f"^({KOHYA_PREFIX}|{_LYCORIS}|{_ONETRAINER})")
# transformers 5 has no `text_model` around CLIP's layers.
_BARE_TEXT_LAYERS = (
    (re.compile(rf"^({_KOHYA_TEXT}\d?_)(?=encoder_layers_\d)"), r"\1text_model_"),
    (re.compile(rf"^{re.escape(_PEFT)}(?=encoder\.layers\.\d+\.(self_attn|mlp)\.)"), f"{_DIFFUSERS_TEXT}."),
    (re.compile(rf"^({_DIFFUSERS_TEXT}(?:_\d)?\.)(?=encoder\.layers\.\d)"), r"\1text_model."),
)
# Prefixes that a name may wear one inside the other, and those that ComfyUI may know the bare name by.
_WRAPPINGS = (_PEFT, UNET_PREFIX, TRANSFORMER_PREFIX, "model.", COMFY_PREFIX)
_CANDIDATES = (COMFY_PREFIX, TRANSFORMER_PREFIX, _PEFT, TEXT_PREFIX, "")
_PROGRAMS = tuple(
    (re.compile(pattern), program)
    for pattern, program in (
        (rf"{KOHYA_PREFIX}(?:(down|up|mid)_block|conv_in|conv_out|.*_attention_to_[qkvo])", _KOHYA_AS_DIFFUSERS),
        (KOHYA_PREFIX, "kohya (the checkpoint's layer names)"),
        (_KOHYA_TEXT, "kohya"),
        (_KOHYA_OFT, "kohya (OFT)"),
        (_ONETRAINER, "OneTrainer"),
        (_LYCORIS, "LyCORIS"),
        (rf"{re.escape(COMFY_PREFIX)}|{re.escape(TEXT_PREFIX)}", "ComfyUI"),
        (rf"(?:{re.escape(UNET_PREFIX)})?{re.escape(_PEFT)}", "PEFT"),
        (rf"{re.escape(TRANSFORMER_PREFIX)}|{re.escape(UNET_PREFIX)}|{_DIFFUSERS_TEXT}", "diffusers"),
        (rf"{_UNET_BLOCKS.pattern}|(?:single_)?transformer_blocks\.", "diffusers, without a prefix"),
    )
)


# --- names that are written ------------------------------------------------------------------------------------------


def kohya_name(layer: str) -> str:
    """kohya's name of a diffusion model's layer, from its dotted name without `diffusion_model.`."""
    return KOHYA_PREFIX + layer.replace(".", "_")


def kohya_fallback(layer: str) -> str:
    """kohya's name from ComfyUI's alone: the checkpoint's own layer name. A layer read from a file keeps its name."""
    return kohya_name(layer.removeprefix(COMFY_PREFIX)) if layer.startswith(COMFY_PREFIX) else layer


def unet_forms(layer: str, diffusers: str, kohya_as_diffusers: bool) -> dict[str, str]:
    """{"kohya", "diffusers"} names of a U-Net's layer, from its own and diffusers' name without a prefix."""
    return {"kohya": kohya_name(diffusers if kohya_as_diffusers else layer), "diffusers": UNET_PREFIX + diffusers}


def text_encoder_forms(known: Mapping[str, str], two: bool) -> dict[str, dict[str, str]]:
    """{layer: {"kohya": ..., "diffusers": ...}} of a text encoder.

    known: every program's name -> the weight's key, as ComfyUI lists them. two: whether it is a pair of CLIPs, which
    kohya numbers from 1.
    """
    starts = {"kohya": f"{_KOHYA_TEXT}1_" if two else f"{_KOHYA_TEXT}_", "diffusers": f"{_DIFFUSERS_TEXT}."}
    second = {"kohya": f"{_KOHYA_TEXT}2_" if two else f"{_KOHYA_TEXT}_", "diffusers": f"{_DIFFUSERS_TEXT}_2."}
    found: dict[str, dict[str, str]] = {}
    for name, key in known.items():
        for form, start in starts.items():
            if name.startswith((start, second[form])):
                found.setdefault(key.removesuffix(".weight"), {})[form] = name
    return found


# --- names that are read ---------------------------------------------------------------------------------------------


def comfy_known_name(layer: str) -> str:
    """diffusers' and PEFT's name of a layer, old or modern, as one that ComfyUI maps; other names as they are.

    `unet.<module>`, `base_model.model.<module>` and `unet.<module>.processor.to_k` -> `lora_unet_<module>`; a text
    encoder's likewise -> `text_encoder.<module>`. kohya's OFT, `oft_unet_<module>` -> `lora_unet_<module>`.
    """
    if layer.startswith(_KOHYA_OFT):
        return KOHYA_PREFIX + layer.removeprefix(_KOHYA_OFT)
    encoder, rest = "", layer
    if found := _TEXT_ENCODER.match(layer):
        encoder, rest = found[1], layer[found.end() :]
    for prefix in (UNET_PREFIX, _PEFT, UNET_PREFIX):
        rest = rest.removeprefix(prefix)
    if encoder or rest.startswith("text_model."):
        rest = re.sub(
            r"\bself_attn\.(to_\w+)$", lambda found: "self_attn." + _TEXT_PROJECTIONS.get(found[1], found[1]), rest
        )
        return f"{encoder or _DIFFUSERS_TEXT}.{rest}"
    if _UNET_BLOCKS.match(rest) and not layer.startswith((COMFY_PREFIX, "lora_")):
        return kohya_name(re.sub(r"\.to_out$", ".to_out.0", rest.replace(".processor.", ".")))
    return layer


def with_text_model(key: str) -> str:
    """A key of CLIP's layers with the `text_model` around them, which files of transformers 5 leave out."""
    for pattern, replacement in _BARE_TEXT_LAYERS:
        key = pattern.sub(replacement, key)
    return key


def candidates(layer: str) -> Iterator[str]:
    """The names that ComfyUI may know a file's layer by: the name as it is, then with other programs' prefixes."""
    yield layer
    bare = layer
    for prefix in _WRAPPINGS:
        bare = bare.removeprefix(prefix)
    for prefix in _CANDIDATES:
        yield prefix + bare


def peft_module(layer: str, components: Collection[str]) -> tuple[str | None, str]:
    """(the component whose settings count for a layer, the layer's name in PEFT's model).

    components: those that a file has PEFT's settings of, such as `unet` or `text_encoder_2`; "" is the one without a
    name. A layer that begins with none of them has the nameless one's settings, and one of a diffusion model else those
    of `unet` or `transformer`; None where there are none for it.
    """
    own = max((c for c in components if c and layer.startswith(f"{c}.")), key=len, default=None)
    if own is not None:
        return own, layer[len(own) + 1 :]
    text = layer.startswith((_DIFFUSERS_TEXT, _KOHYA_TEXT)) or "text_model." in layer
    names = ("",) if text else ("", *(prefix.removesuffix(".") for prefix in (UNET_PREFIX, TRANSFORMER_PREFIX)))
    module = layer
    for prefix in (_PEFT, COMFY_PREFIX, UNET_PREFIX, TRANSFORMER_PREFIX):
        module = module.removeprefix(prefix)
    return next((name for name in names if name in components), None), module


def program_names(layers: Iterable[str]) -> str:
    """The programs whose names the layers have, the two commonest. layers: as the file spells them."""
    counts = Counter(
        next((program for pattern, program in _PROGRAMS if pattern.match(layer)), "names of its own")
        for layer in layers
    )
    if any(program.startswith("kohya (") for program in counts):  # the text encoders' names are the same in all cases
        del counts["kohya"]
    return " and ".join(program for program, _ in counts.most_common(2))


# --- the common name -------------------------------------------------------------------------------------------------


def unet_table(diffusers_to_own: Mapping[str, str]) -> dict[str, str]:
    """{kohya's name without its prefix: the layer's common name} of a U-Net.

    diffusers_to_own: {diffusers' key: the checkpoint's}; kohya writes either with underscores.
    """
    names: dict[str, str] = {}
    for theirs, ours in diffusers_to_own.items():
        if theirs.endswith(".weight"):
            theirs, ours = theirs.removesuffix(".weight"), ours.removesuffix(".weight")
            for name in (theirs, ours):
                names[name.replace(".", "_")] = COMFY_PREFIX + ours
    return names


def common_name(layer: str, unet: Mapping[str, str]) -> str:
    """One name for a file's layer in any program's spelling.

    The U-Nets' layers get the model's own name, `diffusion_model.input_blocks.4.1....attn2.to_k`; the text encoders'
    `te.`, `te2.` and the rest. A name that is not known comes back as it is, with dots around numbers.
    unet: the table of `unet_table`.
    """
    if found := _ANY_TEXT.match(layer):
        number = found[1] or found[2] or {"g": "2"}.get(found[3] or "", "")
        name = layer[found.end() :].replace("text_model_encoder_", "text_model.encoder.")
        name = re.sub(r"(layers)_(\d+)_", r"\1.\2.", name)
        return f"te{'' if number == '1' else number}." + re.sub(r"\b(self_attn|mlp)_", r"\1.", name)
    name = _UNDERSCORED.sub("", layer)
    if name == layer:
        return COMFY_PREFIX + layer.removeprefix(TRANSFORMER_PREFIX) if layer.startswith(TRANSFORMER_PREFIX) else layer
    if name in unet:
        return unet[name]
    dotted = re.sub(r"_(\d+)_", r".\1.", name)
    return COMFY_PREFIX + re.sub(r"_(\d+)$", r".\1", _MODULES.sub(r"\1.", dotted))


def is_text_encoder(name: str) -> bool:
    """Whether a common name is a text encoder's layer, also of one without a number: `text_encoders.t5xxl....`."""
    return name.startswith("te")


def text_encoder_of(name: str) -> str | None:
    """The number of the CLIP that a common name belongs to, "" for the first; None for other models' layers."""
    found = re.match(r"te(\d?)\.", name)
    return found[1] if found else None

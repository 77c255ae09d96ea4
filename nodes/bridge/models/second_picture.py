"""How a model is given a second picture of each, the source of an edit: by which of ComfyUI's nodes.

By the names of the classes in `comfy.model_base` and by their channels: a host that lacks a class needs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....training.errors import InputError
from ....training.images import TrainingImage
from . import flux, unet

AUTO, REFERENCE, QWEN_EDIT, QWEN_EDIT_PLUS = "auto", "reference latent", "Qwen edit", "Qwen edit plus"
SOURCE_ENCODINGS = (AUTO, REFERENCE, QWEN_EDIT, QWEN_EDIT_PLUS)
CHANNELS, MASKED, FIRST_FRAME = "channels", "masked picture", "first frame"
LONGCAT_EDIT, KREA_REFERENCE, MAGE_EDIT = "LongCat edit", "Krea 2 reference", "Mage-Flow edit"
BOOGU_EDIT, JOY_EDIT = "Boogu edit", "JoyImage edit"
BESIDE, REFERENCE_PICTURE = "beside", "reference picture"
# {how: what the report says the model is given}
WORDS = {
    REFERENCE: "a reference latent (ReferenceLatent)",
    QWEN_EDIT: "a reference latent and a picture in the prompt (TextEncodeQwenImageEdit)",
    QWEN_EDIT_PLUS: "a reference latent and a picture in the prompt (TextEncodeQwenImageEditPlus)",
    LONGCAT_EDIT: (
        "a reference latent and a picture in the prompt (TextEncodeQwenImageEdit, and "
        "FluxKontextMultiReferenceLatentMethod at index)"
    ),
    KREA_REFERENCE: (
        "a reference latent and a picture in the prompt (TextEncodeQwenImageEditPlus, and "
        "FluxKontextMultiReferenceLatentMethod at index_timestep_zero)"
    ),
    MAGE_EDIT: "a reference latent and a picture in the prompt (TextEncodeMageFlowEdit)",
    BOOGU_EDIT: "a reference latent and a picture in the prompt (TextEncodeBooguEdit)",
    JOY_EDIT: "a reference latent and a picture in the prompt (TextEncodeJoyImageEdit)",
    BESIDE: "a latent beside its own (InstructPixToPixConditioning)",
    REFERENCE_PICTURE: "a reference picture (HiDreamO1ReferenceImages)",
    CHANNELS: "further channels of its input (InstructPixToPixConditioning)",
    MASKED: "the picture with a hole (InpaintModelConditioning)",
    FIRST_FRAME: "the first frame (WanImageToVideo)",
}
# The text encoder reads the source too.
IN_PROMPT = (QWEN_EDIT, QWEN_EDIT_PLUS, LONGCAT_EDIT, KREA_REFERENCE, MAGE_EDIT, BOOGU_EDIT, JOY_EDIT)
NEEDED_BY = (CHANNELS, FIRST_FRAME)  # what a model without a second picture cannot be trained by
# Whose networks put reference latents beside the picture. Classes derived from them are other models: Chroma's network
# ignores them.
_BY_REFERENCE = ("Flux", "Flux2", "QwenImage", "Omnigen2")
# Classes whose nodes are known from ComfyUI's own workflow templates (comfyui-workflow-templates). Those of LongCat,
# Krea 2 and HiDream are of text to picture too: without second pictures they are trained as such.
_BY_CLASS = {
    "LongCatImage": LONGCAT_EDIT,
    "Krea2": KREA_REFERENCE,
    "MageFlow": MAGE_EDIT,
    "Boogu": BOOGU_EDIT,
    "JoyImage": JOY_EDIT,
    "HiDream": BESIDE,
    "HiDreamO1": REFERENCE_PICTURE,
}
_PAIRS = "Bespoke Pair Image Sets, or pairs of Bespoke Image Folder"
OTHER_TRAINER = f"or train a LoRA for it with Bespoke Train LoRA on a set of pairs, a source and its result ({_PAIRS})"
MEND = f"or wire in a set of pairs, a source and its result each ({_PAIRS})"
CLIPS = ", or a set of clips (Bespoke Clip Folder), of which it is given the first frame"


def second_picture(base) -> str:
    """How a model (ComfyUI's `BaseModel`) is given a second picture: a key of `WORDS`, or "" where it takes none."""
    name, names = type(base).__name__, {kind.__name__ for kind in type(base).__mro__}
    if "IP2P" in names:
        return CHANNELS
    if name in _BY_CLASS:
        return _BY_CLASS[name]
    if name == "WAN21" and getattr(base, "image_to_video", False):
        return FIRST_FRAME
    if name not in ("Flux", "BaseModel", "SDXL", *_BY_REFERENCE):
        return ""
    network = base.diffusion_model
    if unet.fits(network):
        return MASKED if unet.is_inpainting(base) else ""
    if name == "Flux" and flux.is_inpainting(base):
        return MASKED
    if name == "Flux" and flux.is_steered(base):
        return CHANNELS
    return REFERENCE if name in _BY_REFERENCE else ""


def has_source(base, item: TrainingImage) -> bool:
    """Whether a picture has a second one, or is a clip of which the model is given the first frame."""
    return item.control is not None or (item.frames > 1 and second_picture(base) == FIRST_FRAME)


def check_pairs(base, items: Sequence[TrainingImage]) -> None:
    """Raise `InputError` for a set of which some pictures have a second one, where the model needs it of all.

    A clip needs none where the model is given the first frame.
    """
    lacking = [item.path for item in items if not has_source(base, item)]
    if second_picture(base) in NEEDED_BY and 0 < len(lacking) < len(items):
        raise InputError(
            f"this model ({type(base).__name__}) needs a second picture of each, and {len(lacking)} of {len(items)} "
            f"have none: {', '.join(lacking)}; give them one ({_PAIRS}), or leave them out"
        )


def source_encoding(base, wanted: str, items: Sequence[TrainingImage]) -> str:
    """How the second pictures of `items` are given to the model: a key of `WORDS`, or "" where there are none.

    wanted: one of `SOURCE_ENCODINGS`. A model that reads a masked picture takes the masks of items without a second
    picture too. Raises `InputError` for second pictures that the model takes no part of, and for an encoding that is
    another model's.
    """
    own = second_picture(base)
    pairs = [item.path for item in items if item.control is not None]
    masks = own == MASKED and any(item.mask is not None for item in items)
    clips = own == FIRST_FRAME and any(item.frames > 1 for item in items)
    doubled = [item.path for item in items if item.control is not None and item.frames > 1]
    if doubled and own == FIRST_FRAME:
        raise InputError(
            f"{doubled[0]!r} is a clip with a second one, and this model ({type(base).__name__}) is given a clip's own "
            "first frame; train on the clips alone: take Bespoke Pair Image Sets away"
        )
    if wanted != AUTO and not pairs:
        raise InputError(
            f"source_encoding is {wanted!r}, and no picture of the set has a second one; wire in a set of pairs, a "
            f"source and its result each ({_PAIRS}), or set source_encoding to {AUTO}"
        )
    if not pairs and not masks and not clips:
        return ""
    if pairs and not own:
        raise InputError(
            f"the set has a second picture for {pairs[0]!r}, and this model ({type(base).__name__}) is given none; "
            "wire in an edit model (Flux Kontext, Flux 2, Qwen-Image-Edit, OmniGen 2, instruct-pix2pix and others, see "
            "the help), or train on the results alone: switch pairs off, or take Bespoke Pair Image Sets away"
        )
    hidden = [item.path for item in items if item.control is not None and item.mask is None]
    if own == MASKED and hidden:
        raise InputError(
            f"this model ({type(base).__name__}) sees the second picture only outside of the mask, and "
            f"{len(hidden)} of {len(items)} pictures have no mask, so that nothing of their second pictures would be "
            "seen: "
            f"{', '.join(hidden)}; give each a mask of what changes, or take the second pictures away"
        )
    is_qwen = type(base).__name__ == "QwenImage"
    if wanted == AUTO:
        return QWEN_EDIT_PLUS if is_qwen else own
    if wanted == REFERENCE and own != REFERENCE:
        raise InputError(
            f"source_encoding is {wanted!r}, and this model ({type(base).__name__}) is given the second picture as "
            f"{WORDS[own]}; set source_encoding to {AUTO}"
        )
    if wanted in IN_PROMPT and not is_qwen:
        raise InputError(
            f"source_encoding is {wanted!r}, which is for Qwen-Image-Edit, and this model is a {type(base).__name__}; "
            f"set source_encoding to {AUTO}"
        )
    return wanted

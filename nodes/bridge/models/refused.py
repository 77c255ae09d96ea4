"""Models that cannot be trained on pictures and prompts, and what to do instead.

By the names of the classes in `comfy.model_base`, so that a host that lacks one needs nothing. What depends on a
model's channels is in its family's record (`Family.untrainable_reason`).
"""

from __future__ import annotations

_SOUND = "it makes sound, which a set of pictures does not have; train it with a program for sound"
_SHAPES = (
    "it makes a three-dimensional shape, which a set of pictures does not have; train the model that makes the picture "
    "it starts from"
)
_SEES = (
    "it finds things in a picture and makes none; to train what is made within the found area, train a text-to-image "
    "model and use this one for the mask"
)
_FROM_PICTURE = (
    "it works from a picture instead of a prompt, which a training set does not have; wire in a text-to-image model"
)
_RESTORES = (
    "it restores or enlarges a picture that another model has made, and a training set has no damaged pictures; train "
    "the model that makes the picture"
)
_CONTINUES = (
    "it continues a picture that it is given, and a training on still pictures would teach it to repeat that one; "
    "train on the text-to-video model of the same size"
)
_EDITS = (
    "it changes a picture by an instruction, and a training set has no pictures before the change; train on the plain "
    "model of the same size, whose LoRAs work with it"
)
_CONTROL = "which a training set does not have; train on the plain text-to-video model, whose LoRAs work with it"

REASONS = {
    # sound
    "StableAudio1": _SOUND,
    "StableAudio3": _SOUND,
    "ACEStep": _SOUND,
    "ACEStep15": _SOUND,
    "MiniMaxMusic3": _SOUND,
    "MiniMaxH3": (
        "it makes film and sound together in one latent, and a set of pictures has no sound; train on a model of "
        "films without sound"
    ),
    # three dimensions
    "Hunyuan3Dv2": _SHAPES,
    "Hunyuan3Dv2_1": _SHAPES,
    "TripoSplat": _SHAPES,
    "Trellis2": _SHAPES,
    # makes no picture
    "RT_DETR_v4": _SEES,
    "SAM3": _SEES,
    "DepthAnything3": (
        "it measures the depth of a picture and makes none; train a text-to-image model and use this one beside it"
    ),
    "WAN21_FlowRVS": (
        "it finds things in a film and makes none; train on the text-to-video model that it was made from"
    ),
    # restores or enlarges
    "SeedVR2": _RESTORES,
    "PiD": _RESTORES,
    "HunyuanImage21Refiner": _RESTORES,
    "HunyuanVideo15_SR_Distilled": _RESTORES,
    "SD_X4Upscaler": _RESTORES,
    "StableCascade_B": (
        "it turns what Stable Cascade's stage C has made into a latent of full size, and a training set has nothing of "
        "that; train on stage C, whose LoRAs work with it"
    ),
    # works from a picture
    "SVD_img2vid": _FROM_PICTURE,
    "Stable_Zero123": _FROM_PICTURE,
    "Lotus": (
        "it makes its result of a picture in one step, without noise, so that a training on noised pictures does not "
        "fit it, on pairs neither; wire in a text-to-image model"
    ),
    "SD21UNCLIP": (
        "it reads a picture's CLIP vision embedding beside the prompt, which a training does not compute; train on SD "
        "2.1, whose LoRAs work with it"
    ),
    "IP2P": _EDITS,
    # continues a picture
    "HunyuanVideoI2V": _CONTINUES,
    "HunyuanVideoSkyreelsI2V": _CONTINUES,
    # steered
    "WAN21_Vace": f"it is steered by control pictures and masks for each frame, {_CONTROL}",
    "WAN21_Camera": f"it is steered by the path of a camera, {_CONTROL}",
    "WAN21_HuMo": f"it is steered by sound and by pictures of a person, {_CONTROL}",
    "WAN22_Animate": f"it is steered by the pose and face of another film, {_CONTROL}",
    "WAN_Animate2": f"it is steered by the pose and face of another film, {_CONTROL}",
    "WAN22_S2V": f"it is steered by sound and by a picture, {_CONTROL}",
    "WAN21_SCAIL": f"it is steered by the pose of another film, {_CONTROL}",
    "WAN22_WanDancer": f"it is steered by music and by a picture, {_CONTROL}",
}
_COSMOS = (
    "it continues a picture that it is given, as a part of the latent that is denoised (CosmosImageToVideoLatent), "
    "which a training here does not make, on pairs neither; train on the text-to-video model of the same size"
)
_COGVIDEOX = (
    "it continues a picture that it is given, and ComfyUI has no node that gives it one, so that pairs do not help; "
    "train on the text-to-video model of the same size"
)
# Classes, and those derived from them, of text to video and of image to video; an attribute tells which it is. Wan
# 2.2's 5B has the attribute and makes films from a prompt alone.
_EITHER = {"WAN21": _CONTINUES, "CosmosVideo": _COSMOS, "CosmosPredict2": _COSMOS, "CogVideoX": _COGVIDEOX}
_NEITHER = {"WAN22"}


def reason_against(base) -> str:
    """Why a model (ComfyUI's `BaseModel`) cannot be trained on pictures and prompts, or ""."""
    names = [kind.__name__ for kind in type(base).__mro__]
    by_class = next((REASONS[name] for name in names if name in REASONS), "")
    continues = "" if not _NEITHER.isdisjoint(names) else next((_EITHER[name] for name in names if name in _EITHER), "")
    if by_class or (continues and getattr(base, "image_to_video", False)):
        return by_class or continues
    dimensions = base.latent_format.latent_dimensions
    if dimensions not in (2, 3):
        return (
            f"its latents are {dimensions}-dimensional, where those of pictures are 2- and those of films "
            "3-dimensional; wire in a text-to-image or text-to-video model"
        )
    return ""

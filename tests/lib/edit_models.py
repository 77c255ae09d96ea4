"""Small models that are given a second picture, of every kind that a training knows, and small sets of pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import families
import host_models
import stand_ins
import tiny
import torch
from bespoke.training.images import ImageSet, TrainingImage
from helpers import image_set

Chain = Callable[[Any, Any, Any, Any, str, TrainingImage], list]  # (run_node, model, clip, vae, prompt, item)


@dataclass(frozen=True)
class EditModel:
    """make: (model, clip, vae). chain: the positive conditioning of a picture's prompt by core's nodes, as a graph has
    it. masks: whether its pictures have masks. settings: of Train LoRA."""

    make: Callable[[], tuple[Any, Any, Any]]
    chain: Chain
    masks: bool = False
    settings: dict[str, Any] | None = None


def pairs(count: int = 2, masks: bool = False, size: tuple[int, int] = (64, 96), seed: int = 0) -> ImageSet:
    """Pairs of noise, and masks with a hole in one half. size: (height, width) px."""
    draw = torch.Generator().manual_seed(seed)
    items = []
    for number in range(count):
        pixels, control = (torch.randint(0, 256, (*size, 3), generator=draw, dtype=torch.uint8) for _ in range(2))
        mask = torch.zeros(size)
        mask[:, : size[1] // 2] = 1.0
        items.append(
            TrainingImage(f"{number}.png", pixels, f"make it {number}", mask if masks else None, control=control)
        )
    return image_set(items)


def source_of(item: TrainingImage) -> torch.Tensor:
    """The second picture as IMAGE, as Load Image gives it."""
    return item.control[None].float() / 255


def _text(run_node, clip, prompt: str) -> list:
    return run_node("CLIPTextEncode", clip=clip, text=prompt)[0]


def _reference(run_node, model, clip, vae, prompt, item) -> list:
    (latent,) = run_node("VAEEncode", pixels=source_of(item), vae=vae)
    return run_node("ReferenceLatent", conditioning=_text(run_node, clip, prompt), latent=latent)[0]


def _flux_reference(run_node, *rest) -> list:
    return run_node("FluxGuidance", conditioning=_reference(run_node, *rest), guidance=1.0)[0]


def _channels(run_node, model, clip, vae, prompt, item) -> list:
    text = _text(run_node, clip, prompt)
    node = "InstructPixToPixConditioning"
    return run_node(node, positive=text, negative=text, vae=vae, pixels=source_of(item))[0]


def _flux_channels(run_node, *rest) -> list:
    return run_node("FluxGuidance", conditioning=_channels(run_node, *rest), guidance=1.0)[0]


def _masked(run_node, model, clip, vae, prompt, item) -> list:
    text, pixels = _text(run_node, clip, prompt), source_of(item)
    given = dict(positive=text, negative=text, vae=vae, pixels=pixels, mask=item.mask[None], noise_mask=True)
    return run_node("InpaintModelConditioning", **given)[0]


def _flux_masked(run_node, *rest) -> list:
    return run_node("FluxGuidance", conditioning=_masked(run_node, *rest), guidance=1.0)[0]


def _first_frame(run_node, model, clip, vae, prompt, item) -> list:
    text, (height, width) = _text(run_node, clip, prompt), item.pixels.shape[:2]
    given = dict(width=width, height=height, length=5, batch_size=1, start_image=source_of(item))
    return run_node("WanImageToVideo", positive=text, negative=text, vae=vae, **given)[0]


def _qwen(run_node, model, clip, vae, prompt, item) -> list:
    return run_node("TextEncodeQwenImageEdit", clip=clip, prompt=prompt, vae=vae, image=source_of(item))[0]


def _qwen_plus(run_node, model, clip, vae, prompt, item) -> list:
    return run_node("TextEncodeQwenImageEditPlus", clip=clip, prompt=prompt, vae=vae, image1=source_of(item))[0]


def _longcat(run_node, *rest) -> list:
    node = "FluxKontextMultiReferenceLatentMethod"
    return run_node(node, conditioning=_qwen(run_node, *rest), reference_latents_method="index")[0]


def _krea(run_node, *rest) -> list:
    node = "FluxKontextMultiReferenceLatentMethod"
    return run_node(node, conditioning=_qwen_plus(run_node, *rest), reference_latents_method="index_timestep_zero")[0]


def _mage(run_node, model, clip, vae, prompt, item) -> list:
    images = {"image_1": source_of(item)}
    return run_node("TextEncodeMageFlowEdit", clip=clip, prompt=prompt, negative_prompt="", vae=vae, images=images)[0]


def _boogu(run_node, model, clip, vae, prompt, item) -> list:
    images = {"image_1": source_of(item)}
    return run_node("TextEncodeBooguEdit", clip=clip, prompt=prompt, negative_prompt="", vae=vae, images=images)[0]


def _joy(run_node, model, clip, vae, prompt, item) -> list:
    return run_node("TextEncodeJoyImageEdit", clip=clip, prompt=prompt, vae=vae, images={"image0": source_of(item)})[0]


def _reference_picture(run_node, model, clip, vae, prompt, item) -> list:
    text = _text(run_node, clip, prompt)
    given = dict(positive=text, negative=text, images={"image_1": source_of(item)})
    return run_node("HiDreamO1ReferenceImages", **given)[0]


def reads_pictures(name: str):
    """A model of `host_models` whose stand-in for a text encoder reads pictures too."""
    row = host_models.ROWS[name]
    model, _, vae = host_models.made(name)
    return model, stand_ins.clip(replace(row.text, pictures=True)), vae


def ip2p(**more):
    """SD1.5's instruct-pix2pix: eight input channels, the noisy latent and the source's."""
    import comfy.supported_models

    base = comfy.supported_models.SD15_instructpix2pix(tiny.SMALLEST | {"in_channels": 8} | more)
    return families._base(base), tiny.clip(), tiny.vae()


def sdxl_ip2p():
    """SDXL's instruct-pix2pix."""
    import comfy.supported_models

    half = tiny.SDXL["context_dim"] // 2
    more = {"adm_in_channels": half + families._SIZES, "num_classes": "sequential", "in_channels": 8}
    base = comfy.supported_models.SDXL_instructpix2pix(tiny.SDXL | more)
    return families._base(base), tiny.clip(two=True, width=half), tiny.vae()


def flux_control():
    """Flux Canny or Depth: 16 channels and 16 of the control picture."""
    import comfy.supported_models

    _, clip, vae = tiny.flux()
    return families._base(comfy.supported_models.Flux(tiny.FLUX | {"in_channels": 32})), clip, vae


@functools.cache
def qwen_edit():
    """Qwen-Image with a small eye: its text encoder reads pictures."""
    import comfy.ops
    from comfy.text_encoders import qwen_vl

    model, clip, _ = families.qwen_image()
    vae = stand_ins.vae(channels=16, frames=True)  # fast: the nodes encode a square of 1024 px
    llama = next(part for part in clip.cond_stage_model.modules() if hasattr(part, "preprocess_embed"))
    llama.visual = qwen_vl.Qwen2VLVisionTransformer(
        hidden_size=32, output_hidden_size=families.TEXT, intermediate_size=48, num_heads=2, num_layers=2,
        device="cpu", dtype=torch.float32, ops=comfy.ops.disable_weight_init,
    )  # fmt: skip
    tiny.fill(llama.visual, 5)
    return model, clip, vae


def wan_i2v():
    """Wan's image to video, with core's VAE of films."""
    return host_models.made("wan_i2v")[0], *families.made("wan")[1:]


MODELS = {
    "ip2p": EditModel(ip2p, _channels),
    "sdxl_ip2p": EditModel(sdxl_ip2p, _channels),
    "kontext": EditModel(tiny.flux, _flux_reference),
    "flux2": EditModel(families.flux2, _flux_reference),
    "omnigen2": EditModel(lambda: host_models.made("omnigen2"), _reference),
    "qwen_edit": EditModel(qwen_edit, _qwen, settings={"source_encoding": "Qwen edit"}),
    "qwen_edit_plus": EditModel(qwen_edit, _qwen_plus),
    "qwen_reference": EditModel(qwen_edit, _reference, settings={"source_encoding": "reference latent"}),
    "longcat": EditModel(lambda: reads_pictures("longcat_image"), _longcat),
    "krea2": EditModel(lambda: reads_pictures("krea2"), _krea),
    "mage_flow": EditModel(lambda: reads_pictures("mage_flow"), _mage),
    "boogu": EditModel(lambda: reads_pictures("boogu"), _boogu),
    "joyimage": EditModel(lambda: reads_pictures("joyimage"), _joy),
    "hidream_e1": EditModel(lambda: host_models.made("hidream"), _channels),
    "hidream_o1": EditModel(lambda: host_models.made("hidream_o1"), _reference_picture),
    "flux_control": EditModel(flux_control, _flux_channels),
    "inpainting": EditModel(families.inpainting, _masked, masks=True),
    "sdxl_inpainting": EditModel(families.sdxl_inpainting, _masked, masks=True),
    "flux_fill": EditModel(families.flux_fill, _flux_masked, masks=True),
    "wan_i2v": EditModel(wan_i2v, _first_frame),
}


def without_seconds(images: ImageSet) -> ImageSet:
    """The results alone."""
    return image_set([replace(item, control=None) for item in images.items])

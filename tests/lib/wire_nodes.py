"""Every node of the host that takes and gives a MODEL, a CLIP or a VAE, with two values for each of its inputs."""

from __future__ import annotations

import functools
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import families
import tiny
import torch

WIRES = ("MODEL", "CLIP", "VAE")
# Tried in this order until the node runs.
FAMILIES = ("sd15", "flux", "sd3", "wan", "z_image", "qwen_image")
NOT_TRIED = {
    "BespokeTrainLora": "it trains; what it gives is a LoRA as LoraModelLoader applies it",
    "TripoSplatSamplingPreview": "it takes a model that makes shapes; it draws and changes nothing",
    "BespokeTrainTextualInversion": "it trains; what it gives is a word as BespokeApplyEmbedding applies it",
    "BespokeTrainSlider": "it trains; what it gives is a LoRA as LoraModelLoader applies it",
    "BespokeTrainWordAndLora": "it trains; what it gives is a LoRA and a word, as those of the others",
}


SLOW = {
    "HiDreamO1PatchSeamSmoothing": "several families are made until one is taken",
    "ModelSamplingStableCascade": "it computes 10,000 noise levels one by one",
    "TorchCompileModel": "it imports a compiler",
}
NOT_COMPUTED = {"TorchCompileModel": "compiling takes minutes"}

SMALL = "small.safetensors"  # the small model as a checkpoint

_wide = False


def use(wide: bool) -> None:
    """Use the whole small U-Net for SD1.5 from now on, or one with a single level, which is ten times as fast."""
    global _wide
    _wide = wide
    for cached in (made, _second, _models, _clips, _vaes, conditioning):
        cached.cache_clear()


@functools.cache
def made(family: str):
    """(model, clip, vae) of a family."""
    return _make(family, 0)


@functools.cache
def _second(family: str):
    """Another model, text encoder and VAE, with other weights."""
    out = _make(family, 7)
    for module in (out[0].model.diffusion_model, out[1].cond_stage_model, out[2].first_stage_model):
        for parameter in module.parameters():
            parameter.requires_grad_(False).mul_(1.25)
    return out


def _make(family: str, seed: int):
    if family == "small":
        import comfy.sd
        import folder_paths

        return comfy.sd.load_checkpoint_guess_config(folder_paths.get_full_path("checkpoints", SMALL))[:3]
    if family == "sd15":
        return tiny.patcher(tiny.SD15 if _wide else tiny.SMALLEST, seed), tiny.clip(), tiny.vae()
    return families.MAKERS[family]()


class NoValue(Exception):
    """An input that these tests cannot make."""


@dataclass(frozen=True)
class Input:
    """One input. options: of its widget."""

    kind: str
    options: dict[str, Any]
    required: bool
    choices: list[Any] = field(default_factory=list)


def inputs_of(node) -> dict[str, Input]:
    found = {}
    for group, given in node.INPUT_TYPES().items():
        for name, spec in given.items() if group in ("required", "optional") else ():
            options = spec[1] if len(spec) > 1 else {}
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            if kind in ("MODEL_PATCH", "CLIP_VISION_OUTPUT"):
                kind = f"{kind} of {node.__name__}"
            choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
            found[name] = Input(kind, options, group == "required", list(choices))
    return found


def nodes_to_try() -> dict[str, Any]:
    """{id: class} of the nodes that take and give one of `WIRES`, by id."""
    import nodes

    return {
        name: node
        for name, node in sorted(nodes.NODE_CLASS_MAPPINGS.items())
        if any(
            kind in tuple(node.RETURN_TYPES or ()) and kind in {i.kind for i in inputs_of(node).values()}
            for kind in WIRES
        )
    }


def left_out(wide: bool) -> dict[str, str]:
    """{id: why} of the nodes that are not tried. wide: with all that take long."""
    import nodes

    alike = {
        name: "it merges as ModelMergeBlocks does, which is tried"
        for name, node in nodes.NODE_CLASS_MAPPINGS.items()
        if name != "ModelMergeSD1" and any(base.__name__ == "ModelMergeBlocks" for base in node.__mro__[1:])
    }
    return NOT_TRIED | ({} if wide else SLOW | alike)


def write_files(comfyui) -> None:
    """Two LoRAs and two hypernetworks for the small SD1.5, for the nodes that load files."""
    from safetensors.torch import save_file

    layers = tiny.linear_layers(made("sd15")[0])
    folder = comfyui / "models" / "hypernetworks"
    folder.mkdir(exist_ok=True)
    for number in (1, 2):
        save_file(tiny.random_lora(layers, seed=number), comfyui / "models" / "loras" / f"wire-{number}.safetensors")
        generator = torch.Generator().manual_seed(number)
        torch.save(
            {width: _two_layers(width, generator) for width in (tiny.WIDTH, tiny.CONTEXT)}, folder / f"wire-{number}.pt"
        )


def _two_layers(width: int, generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
    """The layers of a hypernetwork for keys and values of a width."""
    return [
        {
            "linear.weight": 0.1 * torch.randn(width, width, generator=generator),
            "linear.bias": 0.1 * torch.randn(width, generator=generator),
        }
        for _ in range(2)
    ]


def two_values(name: str, given: Input, family: str) -> tuple[Any, Any]:
    """Two values of an input, the first of them the default. Raises `NoValue`."""
    options = given.options
    default = options.get("default")
    if given.kind == "INT":
        low, high, step = options.get("min", 0), options.get("max", 2**31), options.get("step", 1)
        default = low if default is None else default
        other = default + step if default + step <= high else default - step
        if high >= 1024 and default >= 256:  # sizes: what the small models can compute
            default, other = max(low, 64), max(low, 64) + step
        return default, other
    if given.kind == "FLOAT":
        low, high = options.get("min", 0.0), options.get("max", 1.0)
        default = 0.0 if default is None else float(default)
        other = next(
            v
            for v in (default * 0.5, default + 0.5, default - 0.5, (low + high) / 2)
            if low <= v <= high and v != default
        )
        return default, other
    if given.kind == "BOOLEAN":
        return bool(default), not default
    if given.kind == "COMBO":
        if not given.choices:
            raise NoValue(f"{name} has no choices")
        choices = [default, *(c for c in given.choices if c != default)] if default in given.choices else given.choices
        if name == "lora_name":
            choices = [c for c in choices if "wire-" in str(c)]
        return choices[0], choices[-1]
    if given.kind == "STRING":
        return _texts(name, default or "")
    return _objects(given.kind, name, family)


def _texts(name: str, default: str) -> tuple[str, str]:
    if "layers" in name:
        return "0", "1"
    if name == "blocks":
        return default, "input"
    if name == "keyframes":
        return default, "0: 1\n0.5: 0.5"
    if "index_list" in name:
        return default, "0"
    return default, default + "x"


def _objects(kind: str, name: str, family: str) -> tuple[Any, Any]:
    make = _MAKERS.get(kind)
    if make is None:
        raise NoValue(f"{name} is a {kind}")
    return make(family)


@functools.cache
def _models(family: str):
    return made(family)[0], _second(family)[0]


@functools.cache
def _clips(family: str):
    return made(family)[1], _second(family)[1]


@functools.cache
def _vaes(family: str):
    return made(family)[2], _second(family)[2]


def _latents(family: str):
    base = made(family)[0].model
    shape = (1, *families.latent_shape(base))
    return {"samples": torch.zeros(shape)}, {"samples": torch.ones((*shape[:-1], 2 * shape[-1]))}


@functools.cache
def conditioning(family: str, text: str):
    clip = made(family)[1]
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _hooks(family: str):
    import comfy.hooks

    layers = tiny.linear_layers(made(family)[0])
    out = []
    for strength in (1.0, 0.3):
        frames = comfy.hooks.HookKeyframeGroup()
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=0.0))
        hooks = comfy.hooks.create_hook_lora(tiny.random_lora(layers), strength_model=1.0, strength_clip=1.0)
        hooks.set_keyframes_on_hooks(frames)
        out.append(hooks)
    return tuple(out)


def _operations(family: str):
    import inprocess

    return tuple(
        inprocess.call_node("LatentOperationSharpen", sharpen_radius=3, sigma=1.0, alpha=a)[0] for a in (0.1, 0.5)
    )


def _model_patches(family: str, module: str, kind: str, **config):
    """Two small models of a class of `MODEL_PATCH`, with other weights."""
    import importlib

    import comfy.model_patcher
    import comfy.ops
    import nodes

    if module:
        found = getattr(importlib.import_module(module), kind)
    else:
        found = getattr(sys.modules[nodes.NODE_CLASS_MAPPINGS["ModelPatchLoader"].__module__], kind)
    cpu, out = torch.device("cpu"), []
    for seed in (1, 2):
        model = found(**config, device=cpu, dtype=torch.float32, operations=comfy.ops.manual_cast)
        tiny.fill(model, seed)
        out.append(comfy.model_patcher.ModelPatcher(model, cpu, cpu))
    return tuple(out)


def _visions(family: str):
    """Two outputs of a small image encoder of 24 layers, 4 tokens and 16 numbers."""
    return tuple(
        types.SimpleNamespace(
            all_hidden_states=torch.full((1, 24, 4, 16), value), penultimate_hidden_states=torch.full((1, 4, 16), value)
        )
        for value in (0.1, 0.2)
    )


_WAN_DIM = 64
_MAKERS = {
    "MODEL_PATCH of QwenImageDiffsynthControlnet": functools.partial(
        _model_patches, module="", kind="QwenImageBlockWiseControlNet", num_layers=2, dim=64
    ),
    "MODEL_PATCH of USOStyleReference": functools.partial(
        _model_patches,
        module="",
        kind="SigLIPMultiFeatProjModel",
        siglip_token_nums=4,
        style_token_nums=2,
        siglip_token_dims=16,
        hidden_size=64,
    ),
    "MODEL_PATCH of WanUni3CControlnetApply": functools.partial(
        _model_patches,
        module="comfy.ldm.wan.uni3c",
        kind="WanUni3CControlnet",
        conv_out_dim=64,
        dim=64,
        ffn_dim=64,
        num_heads=2,
        num_layers=1,
        time_embed_dim=_WAN_DIM,
        out_proj_dim=_WAN_DIM,
        mid_channels=16,
    ),
    "CLIP_VISION_OUTPUT of USOStyleReference": _visions,
    "MODEL": _models,
    "CLIP": _clips,
    "VAE": _vaes,
    "LATENT": _latents,
    "CONDITIONING": lambda family: (conditioning(family, "a red circle"), conditioning(family, "a blue heart")),
    "IMAGE": lambda family: (torch.full((1, 64, 64, 3), 0.25), torch.full((1, 64, 64, 3), 0.75)),
    "MASK": lambda family: (torch.ones(1, 64, 64), torch.cat([torch.ones(1, 64, 32), torch.zeros(1, 64, 32)], -1)),
    "HOOKS": _hooks,
    "LATENT_OPERATION": _operations,
    "LORA_MODEL": lambda family: tuple(
        tiny.random_lora(tiny.linear_layers(made(family)[0]), seed=seed) for seed in (1, 2)
    ),
    "BESPOKE_EMBEDDING": lambda family: tuple({"clip_l": torch.full((1, tiny.CONTEXT), v)} for v in (0.1, 0.2)),
}


def result_of(kind: str, thing, family: str) -> list[torch.Tensor]:
    """What it computes: a MODEL two steps of a sampler with guidance, a CLIP two prompts, a VAE a picture's latent."""
    with torch.inference_mode():
        if kind == "CLIP":
            out = []
            for text in ("a red circle", "a embedding:my-word"):
                for cond, more in thing.encode_from_tokens_scheduled(thing.tokenize(text)):
                    out += [cond.clone(), *(v.clone() for v in more.values() if isinstance(v, torch.Tensor))]
                    out.append(torch.tensor([float("hooks" in more), more.get("clip_start_percent", 0.0)]))
            return out
        if kind == "VAE":
            return [thing.encode(torch.full((1, 64, 64, 3), 0.3)).clone()]
        import comfy.sample

        shape = (1, *families.latent_shape(thing.model))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        positive, negative = conditioning(family, "a red circle"), conditioning(family, "")
        latent = comfy.sample.sample(
            thing, noise, 2, 4.0, "euler", "normal", positive, negative, torch.zeros(shape), seed=5
        )
        return [latent.clone()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True)
    )


def first_values(node, family: str, which: int = 0) -> dict[str, Any]:
    """The first value of every input, or the second with which = 1. Optional inputs that cannot be made are left out.

    MODEL, CLIP and VAE inputs have their first value either way.
    """
    out = {}
    for name, given in inputs_of(node).items():
        try:
            out[name] = two_values(name, given, family)[0 if given.kind in WIRES else which]
        except NoValue:
            if given.required:
                raise
    return out

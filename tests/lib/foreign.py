"""LoRA files made by PEFT's and LyCORIS' own code for layers of a small U-Net, and what these programs compute with
them: the oracle of `test_foreign_strengths.py`.

A file is made for copies of the model's own layers, so that the frozen weights are the same in both programs.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

AT = "input_blocks.1.1.transformer_blocks.0."
# Linear layers without a bias and with one, convolutions of 1x1 and of 3x3 with padding, and with a stride.
LINEAR = (f"{AT}attn2.to_k", f"{AT}attn1.to_out.0", f"{AT}ff.net.0.proj")
CONVOLUTIONS = ("input_blocks.1.1.proj_in", "input_blocks.2.0.in_layers.2", "input_blocks.3.0.op")
LAYERS = (*LINEAR, *CONVOLUTIONS)
NORMS = (f"{AT}norm1", "input_blocks.1.0.in_layers.0")
CELLS, BATCH = 6, 2


@dataclass
class Foreign:
    """A file and its program's answer. outputs: {layer: the program's output for `inputs`}."""

    path: Path
    outputs: dict[str, Tensor]


def layer_of(model: nn.Module, name: str) -> nn.Module:
    """The layer of a diffusion model by its dotted name."""
    return model.get_submodule(name)


def inputs(layer: nn.Module) -> Tensor:
    """An input for a layer, the same at each call: [2, 5, in] or [2, channels, 6, 6]."""
    generator = torch.Generator().manual_seed(3)
    if isinstance(layer, nn.Conv2d | nn.GroupNorm):
        channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.num_channels
        return torch.randn(BATCH, channels, CELLS, CELLS, generator=generator)
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.normalized_shape[0]
    return torch.randn(BATCH, 5, width, generator=generator)


def plain(layer: nn.Module) -> nn.Module:
    """torch's own layer with the numbers of ComfyUI's."""
    if isinstance(layer, nn.Linear):
        out: nn.Module = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    elif isinstance(layer, nn.Conv2d):
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        out = nn.Conv2d(*sizes, bias=layer.bias is not None)
    elif isinstance(layer, nn.GroupNorm):
        out = nn.GroupNorm(layer.num_groups, layer.num_channels, layer.eps)
    else:
        out = nn.LayerNorm(layer.normalized_shape, layer.eps)
    out.load_state_dict({name: tensor.clone() for name, tensor in layer.state_dict().items()})
    return out.requires_grad_(False)


class _Tree(nn.Module):
    """Layers at their dotted names, for programs that look for modules by name."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            *path, last = name.split(".")
            at: nn.Module = self
            for part in path:
                if part not in at._modules:
                    at.add_module(part, nn.Module())
                at = at._modules[part]
            at.add_module(last, layer)

    def forward(self) -> None:
        """PEFT wants one."""


def _randomise(parameters: Any, seed: int, size: float = 0.1) -> None:
    """Factors of `size`; magnitudes, `rescale` and the like, which begin at the weight's own norm or at 1, times about
    1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            if any(word in key for word in ("dora_scale", "magnitude", "rescale")):
                parameter.mul_(1 + 0.2 * noise)
            else:
                parameter.copy_(size * noise)


def by_peft(
    unet: nn.Module, folder: Path, layers: tuple[str, ...] = LAYERS, order: int = 1, size: float = 0.2, **settings: Any
) -> Foreign:
    """`save_pretrained` of PEFT, with `adapter_config.json` beside it. order: -1 writes the tensors in reverse.

    settings: of `LoraConfig`, or with kind = "LoHa" or "LoKr" of those configurations. convert: let PEFT write factors
    for the base as it was before its `init_lora_weights` changed it.
    """
    import peft

    tree = _Tree({name: plain(layer_of(unet, name)) for name in layers})
    kind = settings.pop("kind", "LoRA")
    convert = settings.pop("convert", False)
    start = {"lora_alpha": 3, "init_lora_weights": False} if kind == "LoRA" else {"alpha": 3, "init_weights": False}
    config = {"LoRA": peft.LoraConfig, "LoHa": peft.LoHaConfig, "LoKr": peft.LoKrConfig}[kind]
    model = peft.get_peft_model(tree, config(**({"r": 4, "target_modules": list(layers)} | start | settings)))
    first = folder / "start"
    if convert:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(first)
        model.peft_config["default"].init_lora_weights = settings["init_lora_weights"]
    # With `bias="all"` the layers' own biases are trained too.
    wanted = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    _randomise(wanted, 5, size)
    model.save_pretrained(folder, **({"path_initial_model_for_weight_conversion": str(first)} if convert else {}))
    path = folder / "adapter_model.safetensors"
    if order < 0:
        _reverse(path)
    with torch.no_grad():
        outputs = {n: layer_of(model.base_model.model, n)(inputs(layer_of(unet, n))) for n in layers}
    return Foreign(path, outputs)


def _reverse(path: Path) -> None:
    """The same tensors in the opposite order of the header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(dict(reversed(list(header.items())))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def under_header(path: Path, target: Path, component: str = "", flat: bool = False) -> Path:
    """PEFT's file as diffusers saves it: its settings in the header, a component before each layer and setting.

    flat: each setting as a header entry of its own instead of JSON in one.
    """
    settings = json.loads(path.with_name("adapter_config.json").read_text())
    settings = {f"{component}{key}": value for key, value in settings.items()}
    meta = (
        {key: json.dumps(value) for key, value in settings.items()}
        if flat
        else {"lora_adapter_metadata": json.dumps(settings)}
    )
    tensors = safetensors.torch.load_file(path)
    tensors = {key.replace("base_model.model.", component): tensor for key, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, target, meta)
    return target


LYCORIS = {  # LyCORIS' modules by the name of its option `algo`
    "lora": "LoConModule",
    "loha": "LohaModule",
    "lokr": "LokrModule",
    "diag-oft": "DiagOFTModule",
    "boft": "ButterflyOFTModule",
    "glora": "GLoRAModule",
    "full": "FullModule",
    "norms": "NormModule",
}


def by_lycoris(
    unet: nn.Module,
    path: Path,
    algo: str,
    layers: tuple[str, ...] = LAYERS,
    size: float = 0.2,
    multiplier: float = 1.0,
    **settings: Any,
) -> Foreign:
    """A file of LyCORIS' modules, with kohya's names, and the output of the layers that they are applied to.

    settings: of LyCORIS' module, such as `lora_dim`, `weight_decompose`, `constraint`.
    """
    import lycoris.modules as modules

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    kind = getattr(modules, LYCORIS[algo])
    tensors, outputs = {}, {}
    for number, name in enumerate(layers):
        layer = plain(layer_of(unet, name))
        kohya = "lora_unet_" + name.replace(".", "_")
        rank = {} if algo == "norms" else {"lora_dim": 4, "alpha": 3.0}
        module = kind(kohya, layer, multiplier, **(rank | settings))
        x = inputs(layer)
        module.apply_to()
        if algo == "full":  # it holds the layer's weight itself
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.1 * size * torch.randn(parameter.shape, generator=generator))
        else:
            _randomise(module.named_parameters(), 7 + number, size)
        module.eval()
        tensors |= {f"{kohya}.{key}": tensor.detach().clone() for key, tensor in module.state_dict().items()}
        with torch.no_grad():
            outputs[name] = layer(x)
    safetensors.torch.save_file({k: t.contiguous() for k, t in tensors.items()}, path)
    return Foreign(path, outputs)

"""What a LoRA wire carries inside this pack."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...training.formats import LayerName


class NamedLora(dict[str, Tensor]):
    """A LORA_MODEL, {key: tensor}, that knows its file's name and metadata. To ComfyUI's own nodes it is a dict.

    programs: the programs whose names the file's layers had, in words; "" where it is no file. layer_names: {layer:
    {format: name}} of what other programs call its layers, see `formats.to_format`; {} where that is not known.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name: str,
        meta: Mapping[str, str],
        programs: str = "",
        layer_names: Mapping[str, Mapping[str, LayerName]] | None = None,
    ):
        super().__init__(tensors)
        self.name, self.meta, self.programs = name, dict(meta), programs
        self.layer_names = layer_names or {}

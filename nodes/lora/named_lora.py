"""What a LoRA wire carries inside this pack."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...training.bundles import Words
from ...training.formats import LayerName


class NamedLora(dict[str, Tensor]):
    """A LORA_MODEL, {key: tensor}, that knows its file's name and metadata. To ComfyUI's own nodes it is a dict.

    programs: the programs whose names the file's layers had, in words; "" where it is no file. layer_names: {layer:
    {format: name}} of what other programs call its layers, see `formats.to_format`; {} where that is not known. words:
    {word: {key: vectors}} that its file carries beside the layers, see `bundles`; they are no keys of the dict.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name: str,
        meta: Mapping[str, str],
        programs: str = "",
        layer_names: Mapping[str, Mapping[str, LayerName]] | None = None,
        words: Words | None = None,
    ):
        super().__init__(tensors)
        self.name, self.meta, self.programs = name, dict(meta), programs
        self.layer_names, self.words = layer_names or {}, words or {}

    def carrying(self, words: Words) -> NamedLora:
        """The same LoRA with other words."""
        return NamedLora(self, self.name, self.meta, self.programs, self.layer_names, words)

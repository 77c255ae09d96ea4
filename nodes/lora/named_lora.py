"""What a LoRA wire carries inside this pack."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class NamedLora(dict[str, Tensor]):
    """A LORA_MODEL, {key: tensor}, that knows its file's name and metadata. To ComfyUI's own nodes it is a dict.

    programs: the programs whose names the file's layers had, in words; "" where it is no file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], name: str, meta: Mapping[str, str], programs: str = ""):
        super().__init__(tensors)
        self.name, self.meta, self.programs = name, dict(meta), programs

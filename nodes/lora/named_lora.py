"""What a LoRA wire carries inside this pack."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class NamedLora(dict[str, Tensor]):
    """A LORA_MODEL, {key: tensor}, that knows its file's name and metadata. To ComfyUI's own nodes it is a dict."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, meta: Mapping[str, str]):
        super().__init__(tensors)
        self.name, self.meta = name, dict(meta)

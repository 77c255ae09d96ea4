"""One of the LoRAs that are put together."""

from __future__ import annotations

from dataclasses import dataclass

from ....training.layer_names.spelling import is_text_encoder
from ..named_lora import NamedLora


@dataclass(frozen=True)
class Source:
    """A LoRA and how strongly it goes in: its layers of the diffusion model, and those of text encoders."""

    lora: NamedLora
    strength: float = 1.0
    text_strength: float | None = None  # None: the same

    def strength_of(self, name: str) -> float:
        """name: the layer's common one."""
        return self.strength if self.text_strength is None or not is_text_encoder(name) else self.text_strength

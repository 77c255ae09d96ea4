"""The pack's own wire types."""

from __future__ import annotations

from comfy_api.latest import io

Images = io.Custom("BESPOKE_IMAGES")  # training.images.ImageSet
Run = io.Custom("BESPOKE_RUN")  # training.record.Run
Embedding = io.Custom("BESPOKE_EMBEDDING")  # {"clip_l": [vectors, width] float32, ...}

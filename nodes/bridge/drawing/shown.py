"""How large the page shows a picture that a node draws, and the smallest letters that can be read there."""

from __future__ import annotations

SHOWN_WIDTH = 640  # px: of the preview nodes that show plots and heatmaps in the example workflows
LEAST_TEXT = 11  # px: the height of letters in the page


def least_size(width: float) -> float:
    """The smallest size of letters, in px of a picture `width` px wide, that is `LEAST_TEXT` px as it is shown."""
    return LEAST_TEXT * width / SHOWN_WIDTH

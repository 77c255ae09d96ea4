"""Whether a mask's background is black, as it must be for anything to be kept."""

from __future__ import annotations

from .mask import CellMask, to_cells

DARK = 0.1  # up to here a cell looks black to the eye, and may change all the same
LEAST_SHARE = 0.25  # of the cells; the dark end of a soft mask's gradient has fewer


def background_notes(shaped: CellMask) -> list[str]:
    """A note for the report if the mask's background is dark grey instead of black; else nothing.

    It is, where more of a mask's cells lie between 0 and `DARK` than at 0, before growing and feathering, and at least
    `LEAST_SHARE` of all.
    """
    cells = to_cells(shaped.user, shaped.grid, "any").flatten(1)  # [N, cells]
    dark = (cells > 0.0) & (cells <= DARK)
    counts = dark.sum(1)
    grey = (counts > (cells == 0.0).sum(1)) & (counts >= LEAST_SHARE * cells.shape[1])
    if not bool(grey.any()):
        return []
    value = float(cells[grey][dark[grey]].median())
    which = "The mask's background" if len(grey) == 1 else f"The background of {int(grey.sum())} of {len(grey)} masks"
    return [
        f"{which} is not black: it is up to {value:.3f} ({value * 255:.0f} of 255) and opens {int(counts[grey].sum())} "
        f"of {cells.numel()} latent cells, which may change, too. Make it black, for example with core's "
        "ThresholdMask, or with the levels of the picture that the mask comes from."
    ]

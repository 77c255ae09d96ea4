"""What captions of clips say besides those of pictures: their length, and their first frame."""

from __future__ import annotations

from dataclasses import dataclass

from ..captions.sources import with_trigger

BEFORE, STILL, NO_FIRST = "before the caption", "as a picture", "none"
FIRST_FRAMES = (BEFORE, STILL, NO_FIRST)  # what becomes of NAME.first.txt


@dataclass(frozen=True)
class Filled:
    """What a clip's template is filled in with. frames: their number. fps: frames a second. first: the caption of its
    first frame, or ""."""

    frames: int
    fps: float
    first: str = ""

    @property
    def seconds(self) -> str:
        """How long it lasts, as "2" or "2.1"."""
        return f"{self.frames / self.fps:.1f}".removesuffix(".0")


def filled_template(template: str, filled: Filled) -> str:
    """The template with {frames}, {seconds} and {first} filled in."""
    text = template.replace("{frames}", str(filled.frames)).replace("{seconds}", filled.seconds)
    return text.replace("{first}", filled.first)


def with_first(caption: str, first: str, trigger: str) -> str:
    """The caption with that of the first frame before it, as a sentence of its own; the trigger stays in front."""
    rest = caption.removeprefix(f"{trigger}, ") if trigger else caption
    rest = "" if trigger and rest == trigger else rest
    end = "" if first.rstrip().endswith((".", "!", "?", ";", ",")) or not rest else "."
    return with_trigger(f"{first.rstrip()}{end} {rest}".strip(), trigger)

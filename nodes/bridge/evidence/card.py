"""The evidence card: which step to use and why, base and result, the curve, the numbers, and what to change next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from ....training.evidence import UNFINISHED, Advice, advice, verdict
from ....training.record import Run
from ....training.sample_prompts import lines_of, prompt_alone
from ..drawing.fonts import drawable
from ..drawing.image import paste_middle, scaled, scaled_size
from ..drawing.palette import BAR, EMPTY, FAINT, INK, PAPER, RGB
from ..drawing.text_layout import fit_lines, shorten_middle
from .curve import draw_curve
from .facts import numbers_of, state_of, title_of
from .samples import Pair, pairs_of
from .training_sheet import WIDTH as INSIDE

MARGIN, GAP = 36, 24  # px
WIDTH = INSIDE + 2 * MARGIN  # px
TITLE, BIG, TEXT, SMALL = 26, 30, 18, 15  # px: sizes of letters
LEADING = 1.32  # height of a line over the size of its letters
SLIDER = "slider"  # the technique whose samples show several strengths
LEFT = 700  # px: width of the samples and of the numbers
ROW = 440  # px: height of the curve, and of one pair of samples with its captions
SIDE = (LEFT - 12) // 2  # px of a sample, where there is one pair
LONGEST = 600  # characters of a text
NO_SAMPLES = "No samples were drawn. Set sample_every to draw the base and the result with one seed."
NO_BASE = "The base was not drawn."
NO_RESULT = "The result was not drawn."


def draw_card(run: Run, folder: Path | None, sheet: Image.Image | None) -> Image.Image:
    """The card of a run, `WIDTH` px wide and as high as it needs.

    folder: the run's, which has its samples. sheet: what it was trained on, see `draw_training_sheet`.
    """
    parts = [_head(run), _verdict(run), _middle(run, folder), _facts(run)]
    if sheet is not None:
        parts.append(sheet)
    height = 2 * MARGIN + sum(part.height for part in parts) + GAP * (len(parts) - 1)
    card = Image.new("RGB", (WIDTH, height), PAPER)
    y = MARGIN
    for part in parts:
        card.paste(part, (MARGIN, y))
        y += part.height + GAP
    return card


# --- parts, each INSIDE px wide -------------------------------------------------------------------------------------


def _head(run: Run) -> Image.Image:
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(0, run.info.started)))
    noun = _noun(run)
    under = f"{noun[0].upper()}{noun[1:]}, {state_of(run)}, begun {started}, {run.id}, for {run.info.base or '?'}"
    pen = _Writer(INSIDE)
    pen.write(title_of(run, _untitled(run, noun)), TITLE, INK, most=1)
    pen.write(under, SMALL, FAINT, most=1)
    return pen.picture()


def _untitled(run: Run, noun: str) -> str:
    if noun != SLIDER:
        return f"A {noun} without a trigger"
    settings = run.info.settings
    ends = [str(settings[name]) for name in ("less", "more") if settings.get(name)]
    if settings.get("mode") == "erase":
        return f"Erased: {settings.get('target', '')}"
    return f"A slider: {' to '.join(ends)}" if ends else "A slider"


def _verdict(run: Run) -> Image.Image:
    found = verdict(run)
    pen = _Writer(INSIDE, EMPTY, 18)
    pen.write(found.title, BIG, INK, most=2)
    pen.write(found.reason, TEXT, INK, most=3)
    return pen.picture()


def _middle(run: Run, folder: Path | None) -> Image.Image:
    """The samples beside the curve."""
    left = _samples(run, pairs_of(run, folder))
    curve = draw_curve(run, INSIDE - LEFT - GAP, ROW)
    part = Image.new("RGB", (INSIDE, max(left.height, curve.height)), PAPER)
    part.paste(left, (0, 0))
    part.paste(curve, (LEFT + GAP, 0))
    return part


def _samples(run: Run, pairs: Sequence[Pair]) -> Image.Image:
    """The base and the result: side by side for one prompt, below each other for several."""
    if not pairs:
        return _box(NO_SAMPLES, LEFT, ROW)
    if run.info.technique == SLIDER:
        return _strips(run, pairs)
    labels = ("Base model, same seed", _kept_label(run, pairs[0].step))
    part = Image.new("RGB", (LEFT, ROW), PAPER)
    if len(pairs) == 1:
        pictures = [each and enlarged(each, SIDE) for each in (pairs[0].base, pairs[0].kept)]
        height = max(each.height for each in pictures if each)
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            x = i * (SIDE + 12)
            _write(part, (x, 0), label, SMALL, INK, SIDE)
            part.paste(picture or _box((NO_BASE, NO_RESULT)[i], SIDE, height), (x, 24))
        _write(part, (0, height + 30), prompts_of(run, len(pairs)), SMALL, FAINT, LEFT, most=2)
        return part
    side = min((LEFT - 12 * (len(pairs) - 1)) // len(pairs), (ROW - 2 * 36 - 24) // 2)
    for row, label in enumerate(labels):
        y = row * (side + 36)
        _write(part, (0, y), label, SMALL, INK, LEFT)
        for i, pair in enumerate(pairs):
            picture, corner = (pair.base, pair.kept)[row], (i * (side + 12), y + 24)
            ImageDraw.Draw(part).rectangle((*corner, corner[0] + side - 1, corner[1] + side - 1), EMPTY)
            if picture is not None:
                paste_middle(part, enlarged(picture, side), corner, side)
    _write(part, (0, 2 * (side + 36)), prompts_of(run, len(pairs)), SMALL, FAINT, LEFT)
    return part


def _strips(run: Run, pairs: Sequence[Pair]) -> Image.Image:
    """The samples of a slider, each a row of pictures at several strengths, below each other."""
    found = (each.kept or each.base for each in pairs)
    strips = [scaled(picture, LEFT) for picture in found if picture is not None]
    part = Image.new("RGB", (LEFT, max(ROW, 54 + sum(strip.height + 12 for strip in strips))), PAPER)
    _write(part, (0, 0), _kept_label(run, pairs[0].step), SMALL, INK, LEFT)
    top = 24
    for strip in strips:
        part.paste(strip, (0, top))
        top += strip.height + 12
    _write(part, (0, top), prompts_of(run, len(pairs)), SMALL, FAINT, LEFT)
    return part


def _kept_label(run: Run, step: int) -> str:
    if not step:
        return NO_RESULT
    label = f"With the {_noun(run)}, step {step:,}"
    if run.state in UNFINISHED:
        return label
    return f"{label} (kept)" if step == run.kept_step else f"{label}; kept: {run.kept_step:,}"


def prompts_of(run: Run, shown: int) -> str:
    """The prompts of the first `shown` samples, without options such as --w."""
    target = str(run.info.settings.get("target", ""))
    own = {"word": "a photo of the word", SLIDER: target or "the first caption"}.get(
        _noun(run), "the first picture's caption"
    )
    given = [prompt_alone(line) for line in lines_of(str(run.info.settings.get("sample_prompt", ""))) if line]
    if not any(given):
        return f"Drawn with {own}"
    more = f" | and {len(given) - shown} more" if len(given) > shown else ""
    return " | ".join(prompt or f"({own})" for prompt in given[:shown]) + more


def _noun(run: Run) -> str:
    return {"textual inversion": "word", SLIDER: SLIDER}.get(run.info.technique, "LoRA")


def _facts(run: Run) -> Image.Image:
    """The numbers beside what to change next."""
    left, right = _numbers(run), _next(advice(run))
    part = Image.new("RGB", (INSIDE, max(left.height, right.height)), PAPER)
    part.paste(left, (0, 0))
    part.paste(right, (LEFT + GAP, 0))
    return part


def _numbers(run: Run) -> Image.Image:
    name_width, line = 150, round(SMALL * LEADING) + 4
    rows = numbers_of(run)
    part = Image.new("RGB", (LEFT, line * len(rows) + 34), PAPER)
    _write(part, (0, 0), "Numbers", TEXT + 1, INK, LEFT)
    for i, (name, value) in enumerate(rows):
        y = 34 + i * line
        _write(part, (0, y), name, SMALL, FAINT, name_width - 8)
        _write(part, (name_width, y), value, SMALL, INK, LEFT - name_width)
    return part


def _next(found: Sequence[Advice]) -> Image.Image:
    pen = _Writer(INSIDE - LEFT - GAP)
    pen.write("What to change next", TEXT + 1, INK, most=1)
    pen.space(8)
    for number, each in enumerate(found, 1):
        pen.write(f"{number}. {each.change}", TEXT, BAR, most=2)
        pen.write(each.why, SMALL, INK, most=3)
        pen.space(10)
    if not found:
        pen.write("Nothing in these figures asks for a change.", TEXT, INK, most=2)
    return pen.picture()


# --- letters and pictures -------------------------------------------------------------------------------------------


class _Writer:
    """Lines of text below each other on a ground, `width` px wide; the height follows from the text."""

    def __init__(self, width: int, ground: RGB = PAPER, padding: int = 0) -> None:
        self.width, self.ground, self.padding = width, ground, padding
        self._lines: list[tuple[int, str, int, RGB]] = []
        self._y = padding

    def write(self, text: str, size: int, colour: RGB, most: int) -> None:
        """At most `most` lines of a text; what does not fit ends in "..."."""
        for line in _fitted(text, size, self.width - 2 * self.padding, most)[0]:
            self._lines.append((self._y, line, size, colour))
            self._y += round(size * LEADING)

    def space(self, height: int) -> None:
        self._y += height

    def picture(self) -> Image.Image:
        image = Image.new("RGB", (self.width, self._y + self.padding), self.ground)
        pad = ImageDraw.Draw(image)
        for y, text, size, colour in self._lines:
            text, font = drawable(text, size)
            pad.text((self.padding, y), text, colour, font)
        return image


def _write(
    image: Image.Image, corner: tuple[int, int], text: str, size: int, colour: RGB, width: int, most: int = 1
) -> None:
    lines, font = _fitted(text, size, width, most)
    pad = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pad.text((corner[0], corner[1] + number * round(size * LEADING)), line, colour, font)


def _fitted(text: str, size: int, width: int, most: int) -> tuple[list[str], FreeTypeFont]:
    """A text in at most `most` lines, and its font; of a single line the middle is left out."""
    text, font = drawable(" ".join(text[:LONGEST].split()), size)
    return [shorten_middle(text, font, width)] if most == 1 else fit_lines(text, font, width, most), font


def _box(text: str, width: int, height: int) -> Image.Image:
    """An empty box with a text in it."""
    box = Image.new("RGB", (width, height), EMPTY)
    text, font = drawable(text, TEXT)
    lines = fit_lines(text, font, width - 48, 4)
    pad = ImageDraw.Draw(box)
    for number, line in enumerate(lines):
        y = height / 2 + (number - (len(lines) - 1) / 2) * TEXT * LEADING
        pad.text((width / 2, y), line, FAINT, font, anchor="mm")
    return box


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side scaled to `side` px; one of a quarter of that keeps its pixels as squares."""
    is_tiny = 4 * max(picture.size) <= side
    kind = Image.Resampling.NEAREST if is_tiny else Image.Resampling.LANCZOS
    return picture.resize(scaled_size(picture, side), kind)

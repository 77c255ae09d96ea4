"""Text that fits a width in pixels: shortened, or broken into lines."""

from __future__ import annotations

from PIL.ImageFont import FreeTypeFont

ELLIPSIS = "..."


def shorten_middle(text: str, font: FreeTypeFont, width: float) -> str:
    """The text, with "..." for its middle where it is wider than `width` px."""
    if font.getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and font.getlength(text[: keep // 2] + ELLIPSIS + text[-(keep // 2) :]) > width:
        keep -= 1
    return text[: keep // 2] + ELLIPSIS + text[-(keep // 2) :]


def wrap_words(text: str, font: FreeTypeFont, width: float) -> list[str]:
    """The text in lines of at most `width` px, broken between words; a longer word stays whole."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def fit_lines(text: str, font: FreeTypeFont, width: float, most: int) -> list[str]:
    """The text in at most `most` lines of `width` px, broken at spaces where there are some, else inside a word.

    What does not fit is replaced by "..." at the end of the last line.
    """
    lines, rest = [], " ".join(text.split())
    while rest and len(lines) < most:
        count = min(len(rest), int(width))  # no letter is narrower than a pixel
        while count > 1 and font.getlength(rest[:count]) > width:
            count -= 1
        if count < len(rest):
            count = max(rest.rfind(" ", 0, count + 1), 0) or count
        lines.append(rest[:count].rstrip())
        rest = rest[count:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(last + ELLIPSIS) > width:
            last = last[:-1]
        lines[-1] = last + ELLIPSIS
    return lines or [""]

"""Words in a picture: a font that has their letters, codes for letters that no font here has, lines that fit."""

from __future__ import annotations

from functools import cache, lru_cache

from PIL import ImageFont

# Fonts that systems bring, by the file names under which Pillow finds them: many scripts first, then one each.
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",  # Linux
    "segoeui.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
    "Nirmala.ttc",
    "LeelawUI.ttf",  # Windows
    "Arial Unicode.ttf",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",  # macOS
)
NO_LETTER = "\U0010ffff"  # which Unicode keeps from ever being one, so that a font draws its sign for a missing glyph


def set_in(text: str, size: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """(the text as it can be drawn, the font): Pillow's own, or the system's font that has most of the letters.

    A letter that the font lacks is written as its code, U+4F60, where it would be an empty box.
    """
    font, absent = None, None
    for one in _fonts(size):
        missing = _absent(text, one)
        if absent is None or len(missing) < len(absent):
            font, absent = one, missing
        if not absent:
            break
    return "".join(f"U+{ord(letter):04X} " if letter in absent else letter for letter in text).strip(), font


def undrawn(text: str) -> list[str]:
    """The letters of a text that are drawn as codes, each once."""
    _, font = set_in(text, 12)
    return list(dict.fromkeys(letter for letter in text if letter in _absent(text, font)))


def lines(text: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """The text in at most `most` lines of `width` px, broken at spaces where there are some, in a word where not."""
    out, rest = [], " ".join(text.split())
    while rest and len(out) < most:
        count = min(len(rest), int(width))  # no letter is narrower than a pixel
        while count > 1 and font.getlength(rest[:count]) > width:
            count -= 1
        if count < len(rest):
            count = max(rest.rfind(" ", 0, count + 1), 0) or count
        out.append(rest[:count].rstrip())
        rest = rest[count:].lstrip()
    if rest:
        last = out[-1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        out[-1] = last + "..."
    return out or [""]


@cache
def _fonts(size: float) -> tuple[ImageFont.FreeTypeFont, ...]:
    return ImageFont.load_default(size), *(_open(name, size) for name in _names_here())


@cache
def _names_here() -> tuple[str, ...]:
    return tuple(name for name in SYSTEM_FONTS if _open(name, 12))


def _open(name: str, size: float) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _absent(text: str, font: ImageFont.FreeTypeFont) -> set[str]:
    """The letters that the font draws as it draws what is no letter."""
    return {letter for letter in set(text) if not letter.isspace() and _glyph(font, letter) == _glyph(font, NO_LETTER)}


@lru_cache(20_000)
def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> tuple:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)

"""Fonts: Pillow's own, the system's where a text needs one, and codes for letters that no font here has."""

from __future__ import annotations

from functools import cache, lru_cache

from PIL import ImageFont

# Fonts that systems bring, by the file names under which Pillow finds them: many scripts first, then one each.
SYSTEM_FONTS = (
    # Linux
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    # Windows
    "segoeui.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
    "Nirmala.ttc",
    "LeelawUI.ttf",
    # macOS
    "Arial Unicode.ttf",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
)
NO_LETTER = "\U0010ffff"  # not a character in Unicode, so every font draws its sign for a missing glyph


@lru_cache(256)
def builtin_font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which has Latin letters. size: px."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow gives its bitmap font only where no size is asked for
    return font


def drawable(text: str, size: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """(the text as it can be drawn, the font): Pillow's own font, or the system's that has most of the letters.

    A letter that the font lacks is written as its code, such as U+4F60, instead of an empty box.
    """
    font = builtin_font(size)
    missing = _missing(text, font)
    for other in _system_fonts(size) if missing else ():
        missing_here = _missing(text, other)
        if len(missing_here) < len(missing):
            font, missing = other, missing_here
        if not missing:
            break
    return "".join(f"U+{ord(letter):04X} " if letter in missing else letter for letter in text).strip(), font


def missing_letters(text: str) -> list[str]:
    """The letters of a text that `drawable` writes as codes, each once, in order."""
    _, font = drawable(text, 12)
    return list(dict.fromkeys(letter for letter in text if letter in _missing(text, font)))


@cache
def _system_fonts(size: float) -> tuple[ImageFont.FreeTypeFont, ...]:
    opened = (_open(name, size) for name in _system_font_names())
    return tuple(font for font in opened if font is not None)


@cache
def _system_font_names() -> tuple[str, ...]:
    return tuple(name for name in SYSTEM_FONTS if _open(name, 12))


def _open(name: str, size: float) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _missing(text: str, font: ImageFont.FreeTypeFont) -> set[str]:
    """The letters for which the font draws its sign for a missing glyph."""
    return {letter for letter in set(text) if not letter.isspace() and _glyph(font, letter) == _glyph(font, NO_LETTER)}


@lru_cache(20_000)
def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)  # pyright: ignore[reportArgumentType]  # Pillow's stub lacks the buffer protocol

"""The encoding of text files that say nothing about it: decided over all of them together.

A short caption does not determine its encoding: "ÊÓ" in Windows-1252 has the bytes of a Cyrillic or a Chinese word. So
the files of a folder are taken as one text, and an encoding is judged by what the text becomes in it: words of one
script, the letters of one language, the common characters of Chinese, Japanese and Korean. Where several encodings are
left, the language models of charset-normalizer decide; it comes with ComfyUI through requests.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

try:
    import charset_normalizer
except ImportError:  # `Decision.guessed` says so
    charset_normalizer = None

# Marks at the start of a file. The four bytes of UTF-32 begin with the two of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WITH_ZEROS = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# Control characters, Latin to Arabic, Devanagari, Thai, punctuation, kana, Chinese, Korean, full width, emoji.
_WIDE_BLOCKS = (
    *(range(9, 14), range(0x20, 0x7F), range(0xA0, 0x250), range(0x300, 0x700), range(0x900, 0x980)),
    *(range(0xE00, 0xE80), range(0x1E00, 0x1F00), range(0x200B, 0x2060), range(0x2100, 0x2200)),
    *(range(0x3000, 0x3100), range(0x4E00, 0xA000), range(0xAC00, 0xD7A4), range(0xFF00, 0xFFF0)),
    range(0x1F000, 0x20000),
)
# Single-byte encodings of other scripts: the first word of the Unicode names of their letters.
_SCRIPTS = {
    "cp1251": "CYRILLIC",
    "koi8_r": "CYRILLIC",
    "cp1253": "GREEK",
    "cp1255": "HEBREW",
    "cp1256": "ARABIC",
    "cp874": "THAI",
}
# Letters besides a to z of the languages that are written in each Latin encoding, the most common language first.
_LATIN = {
    "cp1252": (
        "àâæçéèêëîïôœùûüÿ",  # French
        "äöüßé",  # German
        "áéíñóúü",  # Spanish
        "áâãàçéêíóôõúü",  # Portuguese
        "àèéìòù",  # Italian
        "åäöæøéü",  # Danish, Norwegian, Swedish, Finnish
        "éëèïóöü",  # Dutch
    ),
    "cp1250": (
        "ąćęłńóśźż",  # Polish
        "áčďéěíňóřšťúůýž",  # Czech
        "áäčďéíĺľňóôŕšťúýž",  # Slovak
        "áéíóöőúüű",  # Hungarian
        "čćđšž",  # Croatian, Slovene
        "ăâîşţ",  # Romanian
    ),
    "cp1254": ("çğıöşüâî",),  # Turkish
    "cp1257": ("ąčęėįšųūž", "āčēģīķļņšūž", "äõöüšž"),  # Lithuanian, Latvian, Estonian
}
_ICELANDIC = "áðéíóúýþæö"
# Double-byte encodings: the first bytes of punctuation, kana and the characters that are used most (level 1 of each
# standard), and the smallest second byte.
_COMMON = {
    "cp932": ((0x81, 0x82, 0x83, *range(0x88, 0x98)), 0x40),
    "gb18030": ((0xA1, 0xA2, 0xA3, *range(0xB0, 0xD8)), 0xA1),
    "big5": ((0xA1, 0xA2, 0xA3, *range(0xA4, 0xC7)), 0x40),
    "cp949": ((0xA1, 0xA2, 0xA3, *range(0xB0, 0xC9)), 0xA1),
    "euc_jp": ((0xA1, 0xA2, 0xA3, 0xA4, 0xA5, *range(0xB0, 0xD0)), 0xA1),
}
_CANDIDATES = (*_LATIN, *_SCRIPTS, *_COMMON)
NAMES = {
    "utf-8": "UTF-8",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "utf-32-le": "UTF-32",
    "utf-32-be": "UTF-32",
    "iso2022_jp": "ISO-2022-JP",
    "koi8_r": "KOI8-R",
    "cp932": "Shift-JIS",
    "gb18030": "GBK",
    "big5": "Big5",
    "cp949": "EUC-KR",
    "euc_jp": "EUC-JP",
} | {f"cp{number}": f"Windows-{number}" for number in (874, *range(1250, 1258))}
_CLOSE = 0.05  # encodings whose share of implausible characters differs by less are decided by charset-normalizer
_MIXED = 0.05  # from this share of implausible characters on, files of one encoding may be of several
_PRINTABLE, _MOST_PRINTABLE = range(0x20, 0x7F), 0.85  # bytes of ASCII, and the largest share of them in UTF-16
_WORD = re.compile(r"[^\W\d_]+")
_SYMBOL_IN_WORD = re.compile(r"(?<=[^\W\d_])[^\w\s\x00-\x7f’‘·‑­](?=[^\W\d_])")
_LONELY = re.compile(r"(?<![^\x00-\x7f])[^\x00-\x7f](?![^\x00-\x7f])")  # not beside another of its kind


@dataclass(frozen=True)
class Decision:
    """The encoding of one file.

    encoding: Python's name of it. guessed: whether charset-normalizer was needed to tell and is not installed.
    """

    encoding: str
    guessed: bool = False


def mark_of(data: bytes) -> tuple[str, int] | None:
    """(encoding, length of the mark in bytes) of a file that begins with a byte order mark, else None."""
    for mark, name in _MARKS:
        # The mark of UTF-32 is also that of UTF-16 and a zero.
        if data.startswith(mark) and ("32" not in name or _decodes(data, name)):
            return name, len(mark)
    return None


def decide(files: Sequence[bytes]) -> list[Decision]:
    """The encoding of each file. Those with a mark or in UTF-8 are taken as such, the others are decided together."""
    decisions: list[Decision | None] = [_certain(data) for data in files]
    left = [i for i, decision in enumerate(decisions) if decision is None]
    wide = {decision.encoding for decision in decisions if decision is not None} & set(_WITH_ZEROS)
    for i in left if wide else ():  # UTF-16 of Chinese without a zero byte, beside files that have some
        encoding = _wide_encoding(files[i])
        decisions[i] = Decision(encoding) if encoding in wide else None
    left = [i for i in left if decisions[i] is None]
    for group, decision in _groups([files[i] for i in left]):
        for number in group:
            decisions[left[number]] = decision
    return [decision or Decision("cp1252", guessed=True) for decision in decisions]


def _certain(data: bytes) -> Decision | None:
    mark = mark_of(data)
    if mark is not None:
        return Decision(mark[0])
    if b"\x1b$" in data and _decodes(data, "iso2022_jp"):
        return Decision("iso2022_jp")
    zeros = _by_zeros(data)
    if zeros:
        return Decision(zeros)
    return Decision("utf-8") if _decodes(data, "utf-8") else None


def _by_zeros(data: bytes) -> str:
    """UTF-16 or UTF-32 without a mark, or "": no other encoding has zero bytes.

    UTF-16 of Chinese may have zeros only in its blanks, commas and line ends.
    """
    return _wide_encoding(data) if b"\0" in data else ""


def _wide_encoding(data: bytes) -> str:
    """The one of `_WITH_ZEROS` in which nearly all of the data is common characters, or "".

    Two letters of ASCII are one character of Chinese in UTF-16. Without zeros a file of ASCII nearly throughout, such
    as English with a typographic quote, is none of them: of the bytes of Chinese about a half are ASCII.
    """
    if b"\0" not in data and sum(byte in _PRINTABLE for byte in data) > _MOST_PRINTABLE * len(data):
        return ""
    shares = {encoding: _common_share(data, encoding) for encoding in _WITH_ZEROS}
    best = max(_WITH_ZEROS, key=lambda encoding: shares[encoding])
    return best if shares[best] > 0.9 else ""


def _common_share(data: bytes, encoding: str) -> float:
    """The share in 0..1 of characters in blocks of wide use. With swapped bytes it is about a half for Chinese, and
    small for others. 0 where the data cannot be decoded."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return 0.0
    common = sum(any(ord(character) in block for block in _WIDE_BLOCKS) for character in text)
    return common / max(1, len(text))


def _groups(files: list[bytes]) -> Iterator[tuple[list[int], Decision]]:
    """(indices, their encoding): one group where one encoding fits all files, else one for each that is needed.

    KOI8-R and a few others fit any bytes. Where text is implausible in such an encoding and files are plausible each in
    its own, the folder was put together from several, and each file is decided alone.
    """
    left = list(range(len(files)))
    while left:
        fits = {name: [i for i in left if _decodes(files[i], name)] for name in _CANDIDATES}
        most = max(len(indices) for indices in fits.values())
        if not most:
            return
        group, names = _best_group({name: fits[name] for name in fits if len(fits[name]) == most}, files)
        members = [files[i] for i in group]
        decision = _choose(names, members)
        alone = [_alone(data) for data in members]
        badness = _badness(decision.encoding, members)
        if badness > _MIXED and _total_badness(alone, members) < badness / 2:
            yield from (([i], each) for i, each in zip(group, alone, strict=True))
        else:
            yield group, decision
        left = [i for i in left if i not in group]


def _alone(data: bytes) -> Decision:
    return _choose([name for name in _CANDIDATES if _decodes(data, name)], [data])


def _total_badness(decisions: Sequence[Decision], files: Sequence[bytes]) -> float:
    """The mean of the files' `_badness`, each in its own encoding and by its number of characters beyond ASCII."""
    pairs = list(zip((decision.encoding for decision in decisions), files, strict=True))
    counts = [sum(ord(character) > 127 for character in data.decode(name)) for name, data in pairs]
    bad = sum(count * _badness(name, [data]) for count, (name, data) in zip(counts, pairs, strict=True))
    return bad / max(1, sum(counts))


def _best_group(fits: dict[str, list[int]], files: list[bytes]) -> tuple[list[int], list[str]]:
    """(the group of files with the most plausible encoding, the names of all encodings that fit this group)."""
    badness = {name: _badness(name, [files[i] for i in indices]) for name, indices in fits.items()}
    group = fits[min(badness, key=lambda name: badness[name])]
    return group, [name for name, indices in fits.items() if indices == group]


def _choose(names: list[str], files: list[bytes]) -> Decision:
    badness = {name: _badness(name, files) for name in names}
    least = min(badness.values())
    close = [name for name in names if badness[name] <= least + _CLOSE]
    best = min(close, key=lambda name: badness[name])
    if best in _LATIN or len({tuple(data.decode(name) for data in files) for name in close}) == 1:
        return Decision(best)
    if charset_normalizer is None:
        return Decision(best, guessed=True)
    match = charset_normalizer.from_bytes(b"\n".join(files), cp_isolation=close).best()
    return Decision(match.encoding if match is not None and match.encoding in close else best)


def _badness(encoding: str, files: Sequence[bytes]) -> float:
    """The share in 0..1 of the characters beyond ASCII that are implausible where the text is in this encoding."""
    texts = [data.decode(encoding) for data in files]
    count = sum(ord(character) > 127 for text in texts for character in text)
    if encoding == "euc_jp" and not any("\u3041" <= character <= "\u30fa" for text in texts for character in text):
        return 1.0  # Japanese without any kana is rare, and GBK and EUC-KR have the same bytes
    if encoding in _COMMON:
        bad = sum(_rare_characters(encoding, text) for text in texts)
    else:
        bad = _bad_letters(encoding, texts) + sum(len(_SYMBOL_IN_WORD.findall(text)) for text in texts)
    return min(1.0, bad / max(1, count))


def _rare_characters(encoding: str, text: str) -> int:
    lonely = {match.start() for match in _LONELY.finditer(text)}
    return sum(
        not _is_common(encoding, character) or (i in lonely and _beside_letter(text, i))
        for i, character in enumerate(text)
        if ord(character) > 127
    )


@lru_cache(maxsize=20_000)
def _is_common(encoding: str, character: str) -> bool:
    first, smallest = _COMMON[encoding]
    data = character.encode(encoding)
    return len(data) == 2 and data[0] in first and data[1] >= smallest


def _beside_letter(text: str, at: int) -> bool:
    around = text[max(0, at - 1) : at] + text[at + 1 : at + 2]
    return any(character.isascii() and character.isalpha() for character in around)


def _bad_letters(encoding: str, texts: Sequence[str]) -> float:
    """How many letters beyond ASCII stand in words that no language has."""
    words = [word for text in texts for word in _WORD.findall(text) if not word.isascii()]
    letters = [letter for word in words for letter in word if letter.isalpha() and not letter.isascii()]
    bad = sum(_odd_capitals(word) for word in words)
    script = _SCRIPTS.get(encoding)
    if script is not None:
        mixed = sum(
            len(word) for word in words if any(_script(letter) != script for letter in word if letter.isalpha())
        )
        return bad + mixed
    if len(letters) > 0.5 * sum(map(len, words)) and len(letters) > 2:
        return len(letters)  # in Latin script most letters of a text are a to z
    return bad + min(_outside(letters, alphabet) for alphabet in (*_LATIN[encoding], *_other_alphabets(encoding)))


def _other_alphabets(encoding: str) -> tuple[str, ...]:
    return (_ICELANDIC,) if encoding == "cp1252" else ()


def _outside(letters: Sequence[str], alphabet: str) -> int:
    # Three letters of Icelandic have the bytes of three of Turkish; a text with these alone is Turkish.
    if alphabet is _ICELANDIC and not set("".join(letters).lower()) & set("áéíóúæ"):
        return len(letters)
    return sum(letter.lower() not in alphabet for letter in letters)


def _odd_capitals(word: str) -> int:
    """Capitals behind the first letter of a word, unless all of it is in capitals with a letter of ASCII among them."""
    if word.isupper() and any(letter.isascii() for letter in word):
        return 0
    return sum(letter.isupper() and not letter.isascii() for letter in word[1:])


@lru_cache(maxsize=5_000)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0]


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True

"""How a token of a text encoder's vocabulary reads, whatever the tokenizer writes it as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORD_START = "▁"  # SentencePiece's space (Kudo and Richardson 2018, arXiv 1808.06226, section 3)
_CLIP_END, _BERT_JOIN, _BYTE_SPACE = "</w>", "##", "Ġ"
CONTINUED = "…"  # before a token that goes on with a word or stands without a space before it


def spelling(tokenizer: Any, token: int) -> str:
    """The text of a token as a person reads it.

    A token that does not begin a word has `CONTINUED` before it, except CLIP's, which mark the end of a word instead.
    Line ends and spaces are named, bytes that are no text are hexadecimal, and a number that the tokenizer has no text
    for is "#number". tokenizer: ComfyUI's `SDTokenizer`.
    """
    vocabulary: Mapping[int, str] = tokenizer.inv_vocab
    piece = vocabulary.get(token)
    if piece is None:
        return f"#{token}"
    if isinstance(piece, bytes):
        piece = piece.decode("utf-8", "replace")
    kind = _kind(vocabulary)
    if kind == _CLIP_END:
        return _decoded(piece.removesuffix(_CLIP_END)) or piece
    if _is_special(piece):
        return piece
    if kind == _BERT_JOIN:
        return CONTINUED + piece[2:] if piece.startswith(_BERT_JOIN) else piece
    text = piece.replace(_WORD_START, " ") if kind == _WORD_START else _decoded(piece) if kind == _BYTE_SPACE else piece
    return _named(text, kind in (_WORD_START, _BYTE_SPACE))


def _kind(vocabulary: Mapping[int, str]) -> str:
    """What marks the border of a word in a vocabulary; "" where nothing does."""
    marks = {_CLIP_END: str.endswith, _WORD_START: str.startswith, _BYTE_SPACE: str.startswith}
    for mark, found in marks.items():
        if any(isinstance(piece, str) and piece != mark and found(piece, mark) for piece in vocabulary.values()):
            return mark
    return _BERT_JOIN if any(isinstance(p, str) and p.startswith(_BERT_JOIN) for p in vocabulary.values()) else ""


def _is_special(piece: str) -> bool:
    return len(piece) > 2 and piece[0] in "<[" and piece[-1] in ">]"


def _bytes_by_character() -> dict[str, int]:
    """{character: the byte that byte-level BPE writes as it} (Radford et al. 2019): printable ones are themselves, the
    others the characters from 256 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _bytes_by_character()


def _decoded(piece: str) -> str:
    """The text of a piece of byte-level BPE; its bytes where they are no whole characters."""
    if any(character not in _BYTES for character in piece):
        return piece
    data = bytes(_BYTES[character] for character in piece)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{data.hex(' ').upper()}>"


def _named(text: str, marks_starts: bool) -> str:
    """A token's text without the space before it, or with `CONTINUED` where it has none."""
    if text and not text.strip(" "):
        return "space" if len(text) == 1 else f"{len(text)} spaces"
    shown = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    if not marks_starts or shown.startswith(("\\", "<")):
        return shown
    return shown.lstrip(" ") if shown.startswith(" ") else CONTINUED + shown

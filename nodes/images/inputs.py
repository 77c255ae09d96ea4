"""Inputs that several nodes of training sets have."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.captions import CAPTION_SYNTAXES, LITERAL
from ..bridge.files.writing import NO_FOLDER_OPTION
from .places import folder_names

TRIGGER_RULE = "It is put before every caption that does not say it as a word of its own; case does not matter."


def caption_syntax_input() -> io.Combo.Input:
    """Whether brackets in captions are text."""
    return io.Combo.Input(
        "caption_syntax",
        options=list(CAPTION_SYNTAXES),
        default=LITERAL,
        optional=True,
        advanced=True,
        tooltip=(
            "literal: brackets in captions are text, as in the tag saber (fate). prompt: they are emphasis, as in a "
            "prompt: (red:1.4). embedding:name works in both."
        ),
    )


def folder_options() -> list[str]:
    """The choices of a folder. The choice of none is the last, so that a graph can be shared with it."""
    return [*folder_names(), NO_FOLDER_OPTION]

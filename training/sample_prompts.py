"""What the sample images of a training show: a prompt a line, with the options of kohya's sample prompts.

`a red car --n blurry --w 768 --h 512 --d 42 --l 5 --s 30 --f 33`: negative prompt, width and height in px, seed, cfg,
steps, frames.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InputError

MOST_PROMPTS = 16
SIDES = (64, 2048)  # px
STEP = 8  # px: sides are multiples of it
MOST_SEED = 2**64 - 1
MOST_CFG = 100.0
MOST_STEPS = 200
MOST_FRAMES = 257

# Options of kohya's scripts that are refused, and what to do instead.
_ELSEWHERE = {
    "g": "the guidance of a distilled model is set by FluxGuidance in the graph",
    "ss": "the sampler is that of this graph's KSampler",
    "fs": "the shift is set by a node on the model",
    "i": "samples start from noise",
    "cn": "samples have no ControlNet",
    "ctr": "samples have no ControlNet",
    "am": "the LoRA is drawn at strength 1; LoRA Sweep draws other strengths",
}
_OPTION = re.compile(r"(?:^|\s)--([A-Za-z][\w-]*)(?=\s|$)")


@dataclass(frozen=True)
class SamplePrompt:
    """One line. prompt: "" stands for the technique's own. None: as the run's sampler settings and pictures have it.

    width, height: in px. frames: of a film.
    """

    prompt: str = ""
    negative: str = ""
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    cfg: float | None = None
    steps: int | None = None
    frames: int | None = None


def parse_sample_prompts(text: str) -> list[SamplePrompt]:
    """The prompts of a text, one a line, without blank lines; one empty prompt where there are none.

    A line without options is the prompt as it is. Raises `InputError` with the line's number for an unknown option, a
    value out of its range, and for more than `MOST_PROMPTS` lines.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"sample_prompt is {text!r}; give a text, or an empty one")
    lines = [(number, line) for number, line in enumerate(lines_of(text), 1) if line]
    if len(lines) > MOST_PROMPTS:
        raise InputError(
            f"sample_prompt has {len(lines)} lines, and each is drawn at every sample; give {MOST_PROMPTS} at most"
        )
    return [_parse(line, f"line {number} of sample_prompt") for number, line in lines] or [SamplePrompt()]


def prompt_alone(line: str) -> str:
    """A line without its options, of which a name need not be read here; "" for a line of options alone."""
    named = {*_OPTIONS, *_ELSEWHERE}
    first = next((found.start() for found in _OPTION.finditer(line) if found.group(1) in named), len(line))
    return line[:first].strip()


def lines_of(text: str) -> list[str]:
    """The lines of a text without blanks around them, blank lines too.

    Other separators, such as U+2028, may stand within a prompt; the page does not break lines at them either.
    """
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text)]


def _parse(line: str, where: str) -> SamplePrompt:
    found = list(_OPTION.finditer(line))
    if not found:
        return SamplePrompt(line)
    values: dict[str, str] = {}
    for option, following in zip(found, [*found[1:], None], strict=True):
        name = option.group(1)
        if name not in _OPTIONS:
            reason = _ELSEWHERE.get(name, f"known are {', '.join(f'--{known}' for known in _OPTIONS)}")
            raise InputError(f"{where} has --{name}, which is not read: {reason}; take it out")
        if name in values:
            raise InputError(f"{where} has --{name} twice; take one out")
        values[name] = line[option.end() : following.start() if following else None].strip()
    read: dict[str, Any] = {
        _OPTIONS[name][0]: _OPTIONS[name][1](value, f"{where} has --{name}") for name, value in values.items()
    }
    return SamplePrompt(line[: found[0].start()].strip(), **read)


def _text(value: str, given: str) -> str:
    if not value:
        raise InputError(f"{given} without a text; write what the picture must not show, or take it out")
    return value


def _side(value: str, given: str) -> int:
    low, high = SIDES
    side = _whole(value, given, low, high)
    if side % STEP:
        near = max(low, side // STEP * STEP)
        raise InputError(f"{given} {side}, which is no multiple of {STEP}; write {near}")
    return side


def _whole(value: str, given: str, low: int, high: int) -> int:
    number = int(value) if re.fullmatch(r"[0-9]{1,20}", value) else -1
    if not low <= number <= high:
        raise InputError(f"{given} {value}; write a whole number from {low} to {high}")
    return number


def _cfg(value: str, given: str) -> float:
    number = float(value) if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,10})?", value) else -1.0
    if not 0.0 <= number <= MOST_CFG:
        raise InputError(f"{given} {value}; write a number from 0 to {MOST_CFG:g}")
    return number


def _seed(value: str, given: str) -> int:
    return _whole(value, given, 0, MOST_SEED)


def _steps(value: str, given: str) -> int:
    return _whole(value, given, 1, MOST_STEPS)


def _frames(value: str, given: str) -> int:
    return _whole(value, given, 1, MOST_FRAMES)


# {option: (field of `SamplePrompt`, what reads its value)}
_OPTIONS: dict[str, tuple[str, Callable[[str, str], str | int | float]]] = {
    "n": ("negative", _text),
    "w": ("width", _side),
    "h": ("height", _side),
    "d": ("seed", _seed),
    "l": ("cfg", _cfg),
    "s": ("steps", _steps),
    "f": ("frames", _frames),
}


def texts_of(prompts: Sequence[SamplePrompt], own: str) -> list[str]:
    """Every text that samples encode, each once: prompts and negative prompts. own: stands for an empty prompt."""
    texts = [text for each in prompts for text in (each.prompt or own, each.negative)]
    return list(dict.fromkeys(texts))

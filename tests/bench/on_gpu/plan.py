"""The blocks of tests/bench/on_a_gpu.py, in the order of their worth. Needs only Python itself."""

from __future__ import annotations

from dataclasses import dataclass

TOTAL = 480  # seconds in all, the unpacking included
UNPACKING = 20  # seconds of them


@dataclass(frozen=True)
class Block:
    """A part of the program that runs as a process of its own and is ended at its limit.

    function: its name in `blocks`. argument: what that is called with besides the work. limit: seconds. dynamic:
    whether ComfyUI is started with dynamic VRAM. host: whether ComfyUI is started at all.
    """

    name: str
    about: str
    limit: int
    function: str
    argument: str = ""
    dynamic: bool = False
    host: bool = True


BLOCKS = (
    Block("machine", "the GPU, the versions, the rate of a matrix product", 20, "machine"),
    Block("lora-sdxl", "a LoRA of rank 16 on SDXL", 40, "lora", "SDXL"),
    Block("lora-flux", "a LoRA of rank 16 on Flux", 45, "lora", "Flux"),
    Block("peers", "the same step by diffusers with PEFT, core's trainer, and the bare network", 45, "peers_steps"),
    Block("compiled", "compiled: this pack and diffusers with PEFT", 60, "compiled"),
    Block("lora-sd15", "a LoRA of rank 16 on SD1.5", 30, "lora", "SD1.5"),
    Block("lora-z-image", "a LoRA of rank 16 on Z-Image", 35, "lora", "Z-Image"),
    Block("lora-wan", "a LoRA of rank 16 on Wan 2.1 14B, pictures of one frame", 40, "lora", "Wan 14B"),
    Block("cards", "smaller cards: most of this one's memory is taken", 35, "cards"),
    Block("words", "a word of two vectors, with the text encoders in their released sizes", 25, "words"),
    Block("sampling", "SDXL: mask blend and partial denoise beside KSampler", 20, "sampling"),
    Block("inject", "SDXL: ten LoRAs", 20, "inject"),
    Block("dynamic-off", "SD1.5 from a file, without dynamic VRAM", 15, "from_file", "off"),
    Block("dynamic-on", "the same with dynamic VRAM", 15, "from_file", "on", dynamic=True),
    Block("shard", "one process: its collectives, and the base sharded", 15, "shard"),
)
# What goes wrong on purpose, to see that the rest goes on; run with --trials.
TRIALS = (
    Block("trial-fails", "a block that raises", 20, "fails", host=False),
    Block("trial-hangs", "a block that runs out of its time", 8, "hangs", host=False),
    Block("trial-memory", "a row that is out of memory, and one after it", 20, "fills_memory", host=False),
    Block("trial-killed", "a process that the system ends", 20, "is_killed", host=False),
)


def chosen(names: list[str], trials: bool = False) -> tuple[Block, ...]:
    """The blocks of these names, all without a name; with `trials` those that go wrong come first.

    Raises `ValueError` for an unknown name.
    """
    known = {block.name: block for block in (*TRIALS, *BLOCKS)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no block is called {unknown[0]!r}; choose of {', '.join(known)}")
    if names:
        return tuple(known[name] for name in names)
    return (*(TRIALS if trials else ()), *BLOCKS)

"""One example of every picture with numbers that a node draws, from numbers made here: to look at and to measure.

COMFYUI_PATH=... python tests/lib/plot_samples.py FOLDER    writes them as PNG files, as large as they are drawn
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from PIL import Image

ROWS = ("text 1", "down 1", "down 2", "down 4", "down 5", "down 7", "down 8", "middle", "up 3", "up 4", "up 5", "up 9")
KINDS = tuple(
    (kind, f"{short} {name}")
    for kind, short in (("self-attention", "self"), ("cross-attention", "cross"))
    for name in ("query", "key", "value", "out")
)


def strength(contract: str = "noise level", value: float = 0.6, steps: int = 25) -> torch.Tensor:
    from bespoke.nodes.img2img import plot
    from bespoke.nodes.img2img.strength import Plan, Strength

    ramp = torch.linspace(0, 1, steps)
    whole = torch.cat([(14.6 ** (1 / 7) + ramp * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7, torch.zeros(1)])
    sigmas = whole[round(steps * (1 - value)) :]
    plan = Plan(Strength(value, steps, contract), sigmas, whole)
    headline = f"strength {value:g} ({contract}): runs {plan.run} of {steps} steps from sigma {float(sigmas[0]):.3g}"
    return plot.draw(plan, headline, float(sigmas[0] ** 2 / (1 + sigmas[0] ** 2)), 612.0)


def rates() -> torch.Tensor:
    from bespoke.nodes.bridge.learning_rate.book import Probe
    from bespoke.nodes.bridge.learning_rate.plot import draw_rates
    from bespoke.nodes.bridge.learning_rate.search import Found
    from bespoke.training.rate_search import ProbePlan

    all_rates = [1e-5 * 10 ** (i / 3) for i in range(10)]
    rounded = [float(f"{rate:.2g}") for rate in all_rates]
    losses = [0.163, 0.160, 0.154, 0.147, 0.139, 0.133, 0.136, 0.151, 0.3, math.inf]
    probes = {r: Probe(r, 40, 400, loss) for r, loss in zip(rounded, losses, strict=True)}
    found = Found(rounded, probes, 0.165, rounded[5], ProbePlan(40, 8, 10), True, 10, 60.0, 40, True, "", rounded[5])
    return draw_rates(found)


def _run(pictures: bool = False):
    from bespoke.training.leak import LeakPoint
    from bespoke.training.picture_scores import PictureLosses
    from bespoke.training.record import Run, RunInfo

    held_out = [(step, 0.2 - 0.06 * (1 - math.exp(-step / 120)) + 4e-8 * step**2) for step in range(0, 801, 50)]
    losses = [0.18 - 0.05 * (1 - math.exp(-i / 90)) + 0.03 * math.sin(i * 7.3) for i in range(800)]
    info = RunInfo("lora-0123456789ab", "lora", {"steps": 800, "rank": 8}, "house.safetensors", 20)
    run = Run(
        info, losses, held_out, leak=[LeakPoint(step, 0.0005 * step, 0.0005 * step) for step in range(0, 801, 100)]
    )
    if pictures:
        run.pictures = [
            PictureLosses(
                "s",
                f"{i:02}.png",
                i % 5 == 0,
                [(s, (0.1 + 0.01 * i) * (0.7 + 0.3 * math.exp(-s / 200))) for s, _ in held_out],
            )
            for i in range(20)
        ]
    return run


def curve() -> Image.Image:
    from bespoke.nodes.bridge.evidence.curve import draw_curve

    return draw_curve(_run(), 644, 440)


def picture_losses() -> torch.Tensor:
    from bespoke.nodes.compare.inspection.curve import draw_curve

    run = _run(pictures=True)
    return draw_curve(run, run.pictures[-2:])


def _overlap(count: int):
    from bespoke.nodes.lora.composition.overlap import Overlap

    made = torch.Generator().manual_seed(3)
    products = {}
    for i, row in enumerate(ROWS):
        for _, column in KINDS:
            parts = torch.randn(count, 12, generator=made, dtype=torch.float64)
            parts[-1] += (i / 6 - 1) * parts[0]
            products[row, column] = parts @ parts.T
    return Overlap(products, count)


def interference(count: int = 2) -> Image.Image:
    from types import SimpleNamespace

    from bespoke.nodes.lora.composition.heatmap import picture

    names = "ABCDEF"[:count]
    done = SimpleNamespace(overlap=_overlap(count), names=tuple(names))
    return picture(done, [f"my-{name.lower()}_00001.safetensors" for name in names])


def sizes(with_model: bool = True) -> Image.Image:
    from bespoke.nodes.lora.inspection.heatmap import picture
    from bespoke.nodes.lora.inspection.inspect import Projection

    made = torch.Generator().manual_seed(4)
    found = []
    for row in ROWS:
        for kind, column in KINDS:
            size = float(torch.rand((), generator=made)) * (2.5 if kind == "cross-attention" else 0.8)
            spectrum = tuple(size * 0.6**i for i in range(16))
            found.append(
                Projection(
                    f"{row}.{column}",
                    f"{row}.{column}",
                    row,
                    column,
                    "lora",
                    16,
                    16.0,
                    size,
                    40.0 if with_model else None,
                    spectrum,
                )
            )
    return picture("my-style_00001.safetensors", found)


SAMPLES = {
    "strength": strength,
    "strength_low": lambda: strength(value=0.16),
    "strength_high": lambda: strength(value=0.96),
    "rates": rates,
    "curve": curve,
    "picture_losses": picture_losses,
    "interference_2": interference,
    "interference_4": lambda: interference(4),
    "sizes": sizes,
}


def as_picture(drawn: torch.Tensor | Image.Image) -> Image.Image:
    if isinstance(drawn, Image.Image):
        return drawn
    return Image.fromarray((drawn[0] * 255).round().to(torch.uint8).numpy())


def main() -> None:
    import importlib.util

    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root / "tests" / folder) for folder in ("lib", "server", "small_model")]
    spec = importlib.util.spec_from_file_location("conftest", root / "tests" / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)  # loads the pack under its fixed name
    import inprocess

    inprocess.start_comfyui()
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in SAMPLES.items():
        as_picture(make()).save(folder / f"{name}.png")


if __name__ == "__main__":
    main()

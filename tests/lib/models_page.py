"""The tables of js/docs/models.md, from the small models, the marks of their tests and the refusals.

Run it to write the page; `test_models_page.py` holds the page against it. The prose between the tables is written by
hand in the page.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "js" / "docs" / "models.md"
HERE = ROOT / "tests" / "comfy"
COLUMNS = ("Train LoRA", "Train Textual Inversion", "Partial Denoise", "Latent Mask Blend")
FILES = ("test_families.py", "test_families_words.py", "test_families_sampling.py", "test_families_sampling.py")
# The test of the classes that no record describes, by column of their table.
DISCOVERED = {
    "Layers": "test_layers_by_target",
    "Gradient": "test_gradient_is_that_of_finite_differences",
    "LoRA file": "test_core_loads_every_key_and_gives_what_was_trained",
    "Partial Denoise": "test_partial_denoise_is_ksampler",
    "Latent Mask Blend": "test_outside_the_mask_the_latent_is_the_original",
}
TITLES = {
    "sd15": "SD1.5",
    "sd2_v": "SD2.1, v-prediction, OpenCLIP-H",
    "sdxl": "SDXL",
    "sdxl_refiner": "SDXL refiner",
    "inpainting": "SD1.5 inpainting, 9 channels",
    "sdxl_inpainting": "SDXL inpainting, 9 channels",
    "sd3": "SD3, SD3.5",
    "flux": "Flux dev, schnell",
    "flux_fill": "Flux Fill",
    "flux2": "Flux 2 dev, klein",
    "chroma": "Chroma",
    "qwen_image": "Qwen-Image",
    "z_image": "Z-Image",
    "lumina2": "Lumina 2",
    "wan": "Wan 2.1, text to video",
    "wan22": "Wan 2.2 5B",
    # classes that no record describes
    "omnigen2": "OmniGen 2",
    "krea2": "Krea 2",
    "cosmos_predict2": "Cosmos Predict 2, text to picture",
    "anima": "Anima",
    "ltxv": "LTX-Video",
    "ltxav": "LTX-2, its picture",
    "ltxav23": "LTX-2.3, its picture",
    "hunyuan_video": "HunyuanVideo",
    "hunyuan_video15": "HunyuanVideo 1.5",
    "hunyuan_image21": "HunyuanImage 2.1",
    "hidream": "HiDream-I1",
    "hidream_o1": "HiDream-O1",
    "ernie": "ERNIE-Image",
    "kandinsky5": "Kandinsky 5, films",
    "kandinsky5_image": "Kandinsky 5, pictures",
    "auraflow": "AuraFlow",
    "ssd1b": "SSD-1B",
    "vega": "Segmind Vega",
    "koala_700m": "KOALA 700M",
    "koala_1b": "KOALA 1B",
    "cascade_c": "Stable Cascade, stage C",
    "pixart_alpha": "PixArt alpha",
    "pixart_sigma": "PixArt sigma",
    "hunyuan_dit": "HunyuanDiT 1.2",
    "hunyuan_dit1": "HunyuanDiT 1.0, 1.1",
    "flux_schnell": "Flux schnell",
    "longcat_image": "LongCat-Image",
    "chroma_radiance": "Chroma Radiance",
    "lens": "Lens",
    "mochi": "Mochi",
    "cosmos": "Cosmos 1, text to video",
    "z_image_pixels": "Z-Image over pixels",
    "newbie": "NewBie; NetaYume is Lumina 2",
    "pixeldit": "PixelDiT",
    "wan_causal": "Wan 2.1 of causal forcing",
    "boogu": "Boogu",
    "ideogram4": "Ideogram 4",
    "mage_flow": "Mage-Flow",
    "joyimage": "JoyImage",
    "cogvideox": "CogVideoX, text to video",
}


def slow_in(file: str) -> set[str]:
    """The names that a test file marks slow."""
    tree = ast.parse((HERE / file).read_text("utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "SLOW")
    return ast.literal_eval(found.value)


def _names_of(decorator: ast.expr) -> str:
    """The name in `@name`, or "" of another decorator."""
    return decorator.id if isinstance(decorator, ast.Name) else ""


def _mark(test: str, name: str) -> str:
    """ "fast" or "slow", as this test of `test_host_models.py` is marked for a row; "no" where it is not there."""
    file = "test_host_models.py"
    for node in ast.parse((HERE / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == test:
            decorators = set(map(_names_of, node.decorator_list))
            return "slow" if "slow_each" in decorators or name in slow_in(file) else "fast"
    return "no"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else "|---" * len(header) + "|" for line in lines)


def recorded() -> str:
    """The small models of the recorded families."""
    import families

    def cells(name: str) -> list[str]:
        marks = ["slow" if name in slow_in(file) else "fast" for file in FILES]
        return [TITLES[name], f"`{name}`", *marks]

    return table(("Model", "In the tests", *COLUMNS), map(cells, families.FAMILIES))


def discovered() -> str:
    """The small models of the classes that no record describes, and pruned forms of recorded ones."""
    import host_models

    return table(
        ("Class", "Its small model", *DISCOVERED),
        (
            [TITLES[name], f"`{name}`", *(_mark(test, name) for test in DISCOVERED.values())]
            for name, row in host_models.ROWS.items()
            if not row.reason
        ),
    )


def families_table() -> str:
    """What cross-attention means in each recorded family."""
    from bespoke.nodes.bridge.models import FAMILIES

    return table(
        ("Family", "Layers of targets = `cross-attention`"),
        ((family.name, family.cross_attention_layers) for family in FAMILIES),
    )


def refused() -> str:
    """The classes that are refused by name."""
    from bespoke.nodes.bridge.models.refused import REASONS

    classes: dict[str, list[str]] = {}
    for name, reason in REASONS.items():
        classes.setdefault(reason, []).append(f"`{name}`")
    return table(
        ("ComfyUI's class", "Why not, and what to do"), ((", ".join(names), why) for why, names in classes.items())
    )


def clips() -> str:
    """The models that make films, by `test_clips.py`."""
    import families

    tree = ast.parse((HERE / "test_clips.py").read_text("utf-8"))
    given = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    packed, fast = (ast.literal_eval(given[name]) for name in ("VIDEO", "FAST"))

    def cells(name: str) -> list[str]:
        gradient = "slow" if name not in families.MAKERS or name in slow_in(FILES[0]) else "fast"
        return [TITLES[name], f"`{name}`", f"{packed[name]} k + 1", "fast" if name in fast else "slow", gradient]

    return table(("Film model", "In the tests", "Frames", "Two steps", "Gradient"), map(cells, packed))


TABLES = {
    "| Model |": recorded,
    "| Film model |": clips,
    "| Class |": discovered,
    "| Family |": families_table,
    "| ComfyUI's class |": refused,
}


def render(page: str) -> str:
    """The page with its tables made anew; each begins with a line of `TABLES` and ends with an empty one."""
    for start, make in TABLES.items():
        begin = page.index(start)
        end = page.find("\n\n", begin)
        page = page[:begin] + make() + (page[end:] if end >= 0 else "\n")
    return page


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests" / "lib"))
    import importlib.util

    spec = importlib.util.spec_from_file_location("conftest", ROOT / "tests" / "conftest.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    import inprocess

    inprocess.start_comfyui()
    PAGE.write_text(render(PAGE.read_text("utf-8")), "utf-8")

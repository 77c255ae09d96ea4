"""Makes the folder that travels to the machine with the GPU, and unpacks it there. Needs only Python itself.

`contents.json` in it says what is inside. ComfyUI's source comes from the cache that dev.py fills, packages from the
package registry at the versions of tests/constraints.txt. PyTorch is the machine's own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

LIMIT = 64 * 2**20  # bytes of the whole folder
CONTENTS = "contents.json"
# Needed beside PyTorch and its own packages. PyAV (25 MB) is left out, see `host`.
PACKAGES = (
    "numpy", "Pillow", "scipy", "torchsde", "trampoline", "einops", "transformers", "tokenizers", "sentencepiece",
    "safetensors", "aiohttp", "aiohappyeyeballs", "aiosignal", "attrs", "frozenlist", "multidict", "propcache", "yarl",
    "idna", "pyyaml", "tqdm", "psutil", "requests", "urllib3", "certifi", "charset-normalizer", "simpleeval", "blake3",
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "huggingface-hub", "packaging", "regex",
    "httpx2", "httpcore2", "h11", "anyio", "truststore", "click", "typer", "filelock", "diffusers", "peft",
    "accelerate", "importlib-metadata", "zipp",
)  # fmt: skip
OF_COMFYUI = ("comfy-kitchen", "comfy-aimdo")  # at the versions that ComfyUI's requirements.txt names
# Built for one version of PyTorch: the machine's own are used where it has them.
OF_TORCH = ("torchvision", "torchaudio")
# Of the pack's repository: what is imported on the machine.
PACK = ("__init__.py", "pyproject.toml", "nodes", "training", "tests/bench", "tests/lib", "tests/small_model")
PACK_ENDINGS = (".py", ".toml")
# Of ComfyUI: neither its tests nor the vocabularies of language models, which stand-ins replace here.
NOT_OF_COMFYUI = (
    "tests", "tests-unit", "blueprints", "script_examples", "custom_nodes", "models", "input", "output", ".git",
    "comfy/text_encoders/llama_tokenizer", "comfy/text_encoders/qwen35_tokenizer",
    "comfy/text_encoders/qwen25_tokenizer",
)  # fmt: skip
NOT_OF_PACKAGES = ("tests", "__pycache__", "bin", "include", "hip")  # folders of these names
NOT_ENDING = (".pyi", ".pyx", ".pxd", ".pyc", ".h", ".hpp", ".cuh", ".a")
# Parts of packages that are loaded only for AVIF, JPEG and PNG files read by torchvision, with their libraries.
NOT_STARTING = ("pillow.libs/libavif", "PIL/_avif", "torchvision.libs/", "torchvision/image.so")
KERNELS = "comfy_kitchen/backends/cuda/_C.abi3.so"  # 17 MB: comes along where there is room
Step = Callable[[str], None]


class FolderError(Exception):
    """The folder cannot be made or used. The message says what to do."""


def pack_files(root: Path) -> list[Path]:
    """The files of the pack that travel, relative to its folder."""
    found = []
    for name in PACK:
        place = root / name
        paths = sorted(place.rglob("*")) if place.is_dir() else [place]
        found += [p.relative_to(root) for p in paths if p.is_file() and p.suffix in PACK_ENDINGS]
    return found


def requirements(comfyui: Path, without: Sequence[str] = ()) -> list[str]:
    """The packages to bring, one requirement each. without: names that the machine has.

    Raises `FolderError` for a name that is not among them.
    """
    pinned = [line.strip() for line in (comfyui / "requirements.txt").read_text("utf-8").splitlines()]
    own = [line for line in pinned if line.startswith(OF_COMFYUI)]
    wanted = [*PACKAGES, *own]
    names = {re.split("[=<>~]", line)[0] for line in wanted}
    if unknown := [name for name in without if name not in names]:
        raise FolderError(f"--machine-has names {unknown[0]!r}, which the folder never brings: leave it out")
    return [line for line in wanted if re.split("[=<>~]", line)[0] not in without]


def prepare(root: Path, out: Path, python: str, platform: str, without: Sequence[str], say: Step) -> None:
    """Make or renew the folder `out` for a Python such as 3.12 and a platform in uv's words.

    Packages that are there already for the same list are kept. Raises `FolderError` where the folder would be larger
    than `LIMIT`.
    """
    dev = _dev(root)
    try:
        uv = dev.find_uv()
        comfyui = dev.fetch_comfyui(uv)
    except dev.StepError as error:
        raise FolderError(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    constraints = root / "tests" / "constraints.txt"
    wanted = dict(packages=requirements(comfyui, without), python=python, platform=platform)
    trims = (NOT_OF_PACKAGES, NOT_ENDING, NOT_STARTING)
    key = hashlib.sha256(json.dumps([wanted, trims]).encode() + constraints.read_bytes()).hexdigest()
    before = json.loads((out / CONTENTS).read_text()) if (out / CONTENTS).exists() else {}
    kept = {"site", "end", "kernels"} if before.get("key") == key else set()
    if not kept:
        _packages(uv, out, wanted, constraints, say)
    say("packing ComfyUI and the pack")
    skipped = tuple(comfyui / name for name in NOT_OF_COMFYUI)
    _pack(
        out / "comfyui.tar.xz", comfyui, (p for p in _files(comfyui) if not any(p.is_relative_to(s) for s in skipped))
    )
    _pack(out / "pack.tar.xz", root, (root / p for p in pack_files(root)))
    _copy_program(root, out)
    _fit(out, say)
    (out / CONTENTS).write_text(json.dumps(wanted | {"key": key, "comfyui": comfyui.name}, indent=1))


def _dev(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("dev", root / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _packages(uv: str, out: Path, wanted: dict, constraints: Path, say: Step) -> None:
    """Fetch the packages and pack them as site, end (those that the machine's own go before) and kernels."""
    with_torch = [f"{name}=={_pinned(constraints, name)}" for name in OF_TORCH]
    for name, packages in (("site", wanted["packages"]), ("end", with_torch)):
        folder = out / f"{name}.part"
        shutil.rmtree(folder, ignore_errors=True)
        listed = out / f"{name}.txt"
        listed.write_text("\n".join(packages) + "\n")
        say(f"fetching {len(packages)} packages for {name}")
        command = [
            uv, "pip", "install", "--quiet", "--target", folder, "--python-version", wanted["python"],
            "--python-platform", wanted["platform"], "--only-binary", ":all:", "--no-deps", "-r", listed,
            "--constraint", constraints,
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise FolderError(f"the packages could not be fetched: {done.stderr.strip()[-600:]}")
        listed.unlink()
        say(f"packing {name}, which takes minutes")
        kernels = folder / KERNELS
        _pack(out / f"{name}.tar.xz", folder, (p for p in _files(folder) if _travels(p, folder) and p != kernels))
        if kernels.exists():
            _pack(out / "kernels.tar.xz", folder, [kernels])
        shutil.rmtree(folder)


def _pinned(constraints: Path, name: str) -> str:
    return re.search(rf"^{name}==([\w.]+)", constraints.read_text("utf-8"), re.MULTILINE)[1]  # pyright: ignore


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)


def _travels(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder).parts[:-1]
    # numpy.testing imports from this folder of tests.
    wanted = "numpy/_core/tests/_natype.py" in path.as_posix() or not set(inside) & set(NOT_OF_PACKAGES)
    read_by_name = path.relative_to(folder).as_posix().startswith(NOT_STARTING)
    return wanted and not read_by_name and not path.name.endswith(NOT_ENDING)


def _pack(archive: Path, folder: Path, paths: Iterable[Path]) -> None:
    part = archive.with_suffix(".part")
    with tarfile.open(part, "w:xz", preset=9) as tar:
        for path in paths:
            tar.add(path, path.relative_to(folder).as_posix())
    part.replace(archive)


def _copy_program(root: Path, out: Path) -> None:
    bench = root / "tests" / "bench"
    shutil.copy(bench / "on_a_gpu.py", out)
    shutil.rmtree(out / "on_gpu", ignore_errors=True)
    shutil.copytree(bench / "on_gpu", out / "on_gpu", ignore=shutil.ignore_patterns("__pycache__"))


def size(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in _files(folder))


def _fit(out: Path, say: Step) -> None:
    kernels = out / "kernels.tar.xz"
    if size(out) > LIMIT and kernels.exists():
        say("comfy-kitchen's CUDA kernels are left out: there is no room, and it computes without them; name packages "
            "that the machine has by --machine-has to make room")  # fmt: skip
        kernels.unlink()
    if size(out) > LIMIT:
        raise FolderError(
            f"the folder would have {size(out) / 2**20:.0f} MiB and not {LIMIT / 2**20:.0f}; name packages that the "
            "machine has by --machine-has, such as numpy,scipy,transformers"
        )
    say(f"{out} has {size(out) / 2**20:.1f} MiB")


def unpack(folder: Path, work: Path) -> None:
    """Unpack the folder into `work`: its folders comfyui, pack, site and end.

    Raises `FolderError` where the folder is not a prepared one, or is for another Python.
    """
    if not (folder / CONTENTS).is_file():
        raise FolderError(f"{folder} has no {CONTENTS}: make the folder by `prepare`, and start the program in it")
    python = json.loads((folder / CONTENTS).read_text())["python"]
    if python != f"{sys.version_info[0]}.{sys.version_info[1]}":
        raise FolderError(f"the folder is for Python {python} and this is {sys.version.split()[0]}: prepare it again")

    def one(archive: Path) -> None:
        name = archive.name.split(".")[0]
        with tarfile.open(archive) as tar:
            tar.extractall(work / ("site" if name == "kernels" else name), filter="data")

    archives = sorted(folder.glob("*.tar.xz"), key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, archives))

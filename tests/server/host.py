"""A real ComfyUI server in a separate process, with its own base directory and this pack as the only pack.

Standard library only. The demo, the tests and `dev.py serve` all start ComfyUI through here:

    python tests/server/host.py --base DIR [--checkpoint FILE] [--port 8188] [ComfyUI's own options]
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = "bespoke"
CHECKPOINT = "bespoke-small.safetensors"  # the name under which workflows find the small model
EDIT_CHECKPOINT = "bespoke-small-edit.safetensors"  # its instruct-pix2pix form, where that lies beside it
FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints", "models/loras", "models/embeddings")
# Left out of a copy of the pack, where links are not allowed: what the pack does not need at run time.
NOT_THE_PACK = (".dev", ".git", ".ci", "tests", "__pycache__")


class HostError(RuntimeError):
    """The server did not start or did not answer. The message says what to do."""


def comfyui() -> Path:
    """ComfyUI's folder, from `$COMFYUI_PATH`."""
    folder = Path(os.environ.get("COMFYUI_PATH") or ".missing")
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise HostError(f"COMFYUI_PATH is {str(folder)!r}, which is no ComfyUI folder: start through `python3 dev.py`")
    return folder


def writes_log() -> bool:
    """Whether this ComfyUI writes a log file with a level on every line, which 0.24.1 does not."""
    return "LEVEL FILE" in (comfyui() / "comfy" / "cli_args.py").read_text("utf-8")


def prepare_base(base: Path, checkpoint: Path | None = None) -> Path:
    """Make `base` a ComfyUI base directory with the pack in custom_nodes and the checkpoint among the models."""
    base = Path(base).resolve()
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    _place_pack(base / "custom_nodes" / PACK)
    if checkpoint is not None:
        source, folder = Path(checkpoint).resolve(), base / "models" / "checkpoints"
        _place_file(source, folder / CHECKPOINT)
        edit = source.with_name(f"{source.stem}-edit{source.suffix}")
        if edit.is_file():
            _place_file(edit, folder / EDIT_CHECKPOINT)
    return base


def _place_pack(at: Path) -> None:
    if at.is_symlink() and at.resolve() == ROOT:
        return
    if at.is_symlink() or at.is_file():
        at.unlink()
    elif at.is_dir():
        shutil.rmtree(at)  # a copy, perhaps of an older state
    try:
        at.symlink_to(ROOT, target_is_directory=True)
    except OSError:  # Windows without developer mode
        shutil.copytree(ROOT, at, ignore=shutil.ignore_patterns(*NOT_THE_PACK))


def _place_file(source: Path, at: Path) -> None:
    if at.exists() and at.samefile(source):
        return
    at.unlink(missing_ok=True)
    for copy in (os.link, os.symlink, shutil.copyfile):
        try:
            copy(source, at)
            return
        except OSError:
            at.unlink(missing_ok=True)
    raise HostError(f"{source} cannot be placed at {at}: is the disk full, or the folder not writable?")


def free_port() -> int:
    """A port on the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name != "nt":  # the option has another meaning there
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def command(base: Path, port: int, options: list[str] | tuple[str, ...] = ()) -> list[str]:
    """ComfyUI's command line: nothing is written outside `base`, and no pack but this one is loaded.

    `$BESPOKE_FRONTEND` is the folder of another page than the host's own.
    """
    return [
        sys.executable,
        str(comfyui() / "main.py"),
        "--base-directory",
        str(base),
        "--database-url",
        f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-auto-launch",
        "--disable-all-custom-nodes",
        "--whitelist-custom-nodes",
        PACK,
        # A log with the time and the level on every line; naming it keeps the default one out of the working folder.
        "--verbose",
        "INFO",
        *(["--verbose", "INFO", str(base / "comfyui.log")] if writes_log() else []),
        *(["--front-end-root", os.environ["BESPOKE_FRONTEND"]] if os.environ.get("BESPOKE_FRONTEND") else []),
        *options,
    ]


class Host:
    """A running server: `with Host(base) as host: host.get("/object_info")`.

    `console` is what the process printed, `log` ComfyUI's own log with a level on every line where it writes one.
    `output_at_start` is the text of both at its first response, log first.
    """

    def __init__(
        self, base: Path, port: int | None = None, options: tuple[str, ...] = ("--cpu", "--disable-api-nodes")
    ):
        self.base, self.port, self.options = Path(base).resolve(), port or free_port(), options
        self.url = f"http://127.0.0.1:{self.port}"
        self.console = self.base / "console.log"
        self.log = self.base / "comfyui.log" if writes_log() else self.console
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Host:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self, seconds: float = 600) -> None:
        """Start the process and wait until it answers."""
        self.log.unlink(missing_ok=True)
        with self.console.open("wb") as out:
            # In the base directory, since ComfyUI writes to the folder that it is started in.
            self.process = subprocess.Popen(
                command(self.base, self.port, self.options),
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            self._wait(seconds)
            self.output_at_start = tuple(file.read_text("utf-8", "replace") for file in (self.log, self.console))
        except BaseException:
            self.stop()
            raise

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise HostError(f"ComfyUI ended with status {self.process.returncode} while starting:\n{self.tail()}")
            try:
                self.get("/queue", timeout=5)
                return
            except (OSError, ValueError):
                time.sleep(0.2)
        raise HostError(f"ComfyUI did not answer within {seconds:.0f} s. The end of {self.console}:\n{self.tail()}")

    def stop(self) -> None:
        """End the process and wait for it."""
        stop(self.process)

    def tail(self, lines: int = 25) -> str:
        """The last lines that the process printed."""
        return (
            "\n".join(self.console.read_text("utf-8", "replace").splitlines()[-lines:]) if self.console.exists() else ""
        )

    def get(self, path: str, timeout: float = 60):
        """GET `path`; JSON is decoded, anything else comes as bytes."""
        return self._send(urllib.request.Request(self.url + path), timeout)

    def post(self, path: str, data: dict, timeout: float = 60):
        """POST `data` as JSON. An answer of status 4xx raises `urllib.error.HTTPError`, whose body says why."""
        body = json.dumps(data).encode()
        return self._send(urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}), timeout)

    @staticmethod
    def _send(request: urllib.request.Request, timeout: float):
        # No proxy: a proxy of the environment must not get requests for the loopback address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout) as answer:
            body = answer.read()
            return json.loads(body) if answer.headers.get_content_type() == "application/json" else body


def stop(process: subprocess.Popen | None, seconds: float = 10) -> None:
    """Terminate a child process, kill it after `seconds`, and wait for it."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_on_terminate() -> None:
    """Handle SIGTERM like Ctrl-C, so that every `finally` and `with` ends its child."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)

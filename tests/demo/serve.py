"""ComfyUI's page with this pack, the small model, the demo's inputs and the example workflows with its values.

python tests/demo/serve.py --base DIR --checkpoint FILE [--port N] [options of ComfyUI]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "server"))

import host
import pictures
from small_values import for_small_model

FOLDER = "bespoke with the small model"


def write_workflows(server: host.Host, figures: bool = False) -> list[Path]:
    """Write the example workflows to the user's workflows, where the page lists them; existing files are kept."""
    info = server.get("/object_info")
    folder = server.base / "user" / "default" / "workflows" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted((host.ROOT / "example_workflows").glob("*.json")):
        target = folder / path.name
        if not target.exists():
            target.write_text(json.dumps(for_small_model(json.loads(path.read_text("utf-8")), info, figures)), "utf-8")
            written.append(target)
    return written


def _write_when_ready(server: host.Host, process: subprocess.Popen, figures: bool) -> None:
    while process.poll() is None:
        try:
            write_workflows(server, figures)
            return
        except (OSError, ValueError):
            time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve ComfyUI with this pack; further options go to ComfyUI.")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--port", type=int, default=8188)
    args, options = parser.parse_known_args()
    if not host.port_is_free(args.port):
        print(f"Port {args.port} is in use: stop what listens there, or choose another with --port {args.port + 1}.")
        return 1
    base = host.prepare_base(args.base, args.checkpoint)
    if "--cpu" not in options and not _has_accelerator():
        options = ["--cpu", *options]
    host.end_on_terminate()
    pictures.make(base / "input", args.checkpoint)
    process = subprocess.Popen(host.command(base, args.port, options), cwd=base)
    print(
        f"ComfyUI starts at http://127.0.0.1:{args.port} (about 10 s); its files are in {base}. The workflows are in "
        f"its list of workflows under {FOLDER!r}. Ctrl-C ends it.",
        flush=True,
    )
    page = host.Host(base, args.port)
    threading.Thread(
        target=_write_when_ready, args=(page, process, pictures.are_figures(args.checkpoint)), daemon=True
    ).start()
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        host.stop(process)


def _has_accelerator() -> bool:
    # In another process, since ComfyUI configures torch before it imports it.
    probe = "import torch; raise SystemExit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))"
    return subprocess.run([sys.executable, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0


if __name__ == "__main__":
    sys.exit(main())

"""GET and POST /bespoke/lora/settings: what a LoRA file says about its training, for the trainer's widgets.

GET reads a file of the loras folder. POST takes the header of a file that was dropped on the page, as the page has read
it: {"metadata": {name: text}, "shapes": {tensor: [size]}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web
from safetensors import SafetensorError

from ....training.errors import InputError
from ....training.layer_names.parts import ALPHA
from ...bridge.files.headers import read_header, read_small_tensors
from ...bridge.files.listing import find_file
from ...bridge.files.reading import read_text
from ...bridge.web import HasRoutes, json_answer, post_answer, read_object
from ..files import MOST_CONFIG_BYTES
from ..peft_config import CONFIG_FILE, CONFIG_OF, METADATA
from .of_file import settings_of_file


def register(server: HasRoutes) -> None:
    """Add the routes to ComfyUI's server."""

    @server.routes.get("/bespoke/lora/settings")
    async def of_chosen(request: web.Request) -> web.Response:
        return await json_answer(chosen, request.query.get("name", ""), errors=(OSError,))

    @server.routes.post("/bespoke/lora/settings")
    async def of_dropped(request: web.Request) -> web.Response:
        return await post_answer(request, dropped)


def chosen(name: str) -> dict[str, Any]:
    """The settings of a file in the loras folder. Raises `InputError` for what is not there or no safetensors file."""
    _, path = find_file("loras", name)
    try:
        header = read_header(path)
        tensors, _ = read_small_tensors(path, 1)
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path.name} cannot be read as a safetensors file; fetch it again") from error
    alphas = [float(t) for key, t in tensors.items() if key.endswith(ALPHA) and t.numel() == 1 and not t.is_meta]
    shapes = {key: entry.get("shape") for key, entry in header.items() if isinstance(entry, dict)}
    return _answer(_with_config(path, header.get("__metadata__")), shapes, alphas)


def _with_config(path: Path, metadata: Any) -> Any:
    """The metadata, with PEFT's settings that its `save_pretrained` writes into a file beside its LoRA."""
    config = path.with_name(CONFIG_FILE)
    if path.name != CONFIG_OF or not config.is_file():
        return metadata
    try:
        own = read_text(config, MOST_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(f"{CONFIG_FILE} beside {path.name} cannot be read; fetch both again") from error
    return {METADATA: own} | (metadata if isinstance(metadata, dict) else {})


def dropped(body: bytes) -> dict[str, Any]:
    """The settings of a dropped file, by its header. Raises `InputError` for a body that is none."""
    header = read_object(body, {"metadata": dict, "shapes": dict})
    return _answer(header["metadata"], header["shapes"], [])


def _answer(metadata: Any, shapes: Mapping[str, Any], alphas: list[float]) -> dict[str, Any]:
    texts = {k: v for k, v in metadata.items() if isinstance(v, str)} if isinstance(metadata, dict) else {}
    sizes = {key: shape for key, shape in shapes.items() if _is_shape(shape) and key != "__metadata__"}
    # A seed has up to 64 bits and a number in JavaScript 53.
    answer = asdict(settings_of_file(texts, sizes, alphas))
    seed = answer["values"].get("seed", 0)
    if seed > MOST_SEED:
        del answer["values"]["seed"]
        answer["notes"].append(f"The seed is {seed}, which the page cannot show exactly; it stays as it is.")
    return answer


MOST_SEED = 2**53 - 1


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**31 for size in shape)

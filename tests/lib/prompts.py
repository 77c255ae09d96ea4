"""Runs prompts in this process by ComfyUI's own validation, executor and caches, as its queue does."""

from __future__ import annotations

import asyncio
import copy
from typing import Any, ClassVar


class Models:
    """A node that gives `models`, a (model, clip, vae)."""

    models: Any = None
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def give(self):
        return type(self).models


class Keep:
    """A node that keeps what comes to it: for each time that it runs, its input as the list that the wire carries."""

    kept: ClassVar[dict[str, list]] = {}
    RETURN_TYPES = ()
    FUNCTION = "keep"
    CATEGORY = "tests"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*", {}), "name": ("STRING", {"default": ""})}}

    def keep(self, value, name):
        self.kept.setdefault(name[0], []).append(value)
        return ()


class Queue:
    """One executor with its caches. Nodes keep what they give from one prompt to the next, as on a server."""

    def __init__(self) -> None:
        import execution
        import nodes
        import server

        nodes.NODE_CLASS_MAPPINGS |= {"TestModels": Models, "TestKeep": Keep}
        self._server = server.PromptServer.instance
        self._server.client_id = None
        self._executor = execution.PromptExecutor(
            self._server,
            cache_type=execution.CacheType.CLASSIC,
            cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0},
        )
        self._count = 0

    def run(self, **prompt: tuple[str, dict]) -> dict[str, list]:
        """Validate and execute a prompt {node id: (class, inputs)}; gives {name: what `TestKeep` nodes got}.

        Raises `AssertionError` with ComfyUI's words where the prompt is not valid or a node fails.
        """
        import execution

        self._count += 1
        prompt_id = f"test-{self._count}"
        whole = {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in prompt.items()}
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt(prompt_id, whole, None))
        assert valid, (error, node_errors)
        assert not node_errors, node_errors
        queue = self._server.prompt_queue
        queue.currently_running[self._count] = (0, prompt_id, copy.deepcopy(whole), {}, outputs)
        Keep.kept = {}
        try:
            self._executor.execute(whole, prompt_id, {}, outputs)
        finally:
            queue.currently_running.pop(self._count)
        failed = [data for event, data in self._executor.status_messages if event == "execution_error"]
        assert not failed, failed[0]["exception_message"]
        return Keep.kept

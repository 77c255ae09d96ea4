"""Bespoke: make a diffusion model your own without leaving the graph."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    # Imported here and not above: whoever only imports the package (a test runner, a linter) needs no ComfyUI.
    from .nodes.extension import BespokeExtension

    return BespokeExtension()

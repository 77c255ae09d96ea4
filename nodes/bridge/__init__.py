"""All that the pack knows of ComfyUI: models, folders, events and the server."""

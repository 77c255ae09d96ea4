"""ComfyUI at arm's length: all that the pack knows of models, folders, events and the server."""

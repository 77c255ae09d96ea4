"""A training run: its loop on ComfyUI, record, state, events and routes."""

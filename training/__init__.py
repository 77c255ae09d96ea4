"""The mathematics of training and the training loop. Nothing here imports ComfyUI, the server or a node."""

"""How LoRA files name layers. Text in, text out: no tensors are read, and ComfyUI is not imported.

`parts`: the parts of a layer, such as `.lora_up.weight`. `spelling`: the prefixes and spellings of each program, and
one common name for a layer. `blocks`: the block a layer lies in and the projection it is.
ComfyUI's own tables of names are arguments; `nodes/bridge/models/names.py` provides them.
"""

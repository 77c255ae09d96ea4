"""A network's forward pass: on fake tensors, observed, and made safe for a backward pass.

Nothing here depends on what is known of a model; `models` and `training_model` build on it.
"""

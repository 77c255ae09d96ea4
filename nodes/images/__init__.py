"""Image nodes: a training set from a folder or from image batches."""

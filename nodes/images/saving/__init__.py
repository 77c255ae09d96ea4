"""Save Image Set: a training set as a folder."""

"""Clips: films, animations and folders of frames as items of a training set."""

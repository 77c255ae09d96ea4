"""The one error that a person is meant to read."""


class InputError(ValueError):
    """Something that was given cannot be used. The message names the value and says what to do instead."""

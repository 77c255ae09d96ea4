"""The error that is shown to a user."""


class InputError(ValueError):
    """An input cannot be used. The message names the value and says what to do instead."""

"""A run as it is followed, shown, kept on disk and gone on with."""

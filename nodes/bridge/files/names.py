"""What a file system takes as a name."""

from __future__ import annotations

from ....training.errors import InputError

LONGEST_NAME = 255  # bytes of UTF-8 of one file's or folder's name, on nearly all file systems
# Windows' devices (Microsoft, "Naming Files, Paths, and Namespaces").
RESERVED = frozenset({"CON", "PRN", "AUX", "NUL"} | {f"{kind}{n}" for kind in ("COM", "LPT") for n in "123456789¹²³"})


def check_length(name: str, ending: str = "") -> None:
    """Raise `InputError` where a part of `name` between slashes, the last with `ending`, is too long for a file system.

    Also where it holds half of a surrogate pair, which is no character and no file's name.
    """
    parts = (name + ending).replace("\\", "/").split("/")
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError as error:
        raise InputError(f"the name {name!r} holds {name[error.start]!r}, which is no character; remove it") from None
    shown = name if len(name) <= 60 else f"{name[:40]}...{name[-10:]}"
    if longest > LONGEST_NAME:
        with_ending = f", with the ending {ending!r}" if ending else ""
        raise InputError(
            f"the name {shown!r} has a part of {longest} bytes in UTF-8{with_ending}; a file's or folder's name has at "
            f"most {LONGEST_NAME}: shorten it by {longest - LONGEST_NAME} bytes"
        )


def is_reserved(part: str) -> bool:
    """Whether Windows takes a name for a device, whatever its ending: "con", "com1.txt"."""
    return part.split(".")[0].rstrip(" ").upper() in RESERVED


def shortened(name: str, most: int) -> str:
    """The beginning of a name, at most `most` bytes of UTF-8, with no character cut in two; no blank or dot ends it."""
    return name.encode()[:most].decode("utf-8", "ignore").rstrip(" .")

"""File names of images: the row's index first, then words of the prompt that any system takes."""

from __future__ import annotations

import re
import unicodedata

# File systems take 255 bytes; a file that is being written has about 10 more in its name.
_MAX_WORD_BYTES = 100
_NAME = re.compile(r"(\d{5,})-(\d{2,})(-[^.]*)?\.([a-z]+)")


def file_name(index: int, number: int, prompt: str, suffix: str) -> str:
    """Make a file name, such as ``00003-00-a-red-cat.png``.

    The numbers make it unique and sort it. As they come first, no name is one that a system
    reserves. Of the prompt letters and digits of all scripts stay, up to 100 bytes in UTF-8.

    Args:
        index: The row's number in the data set.
        number: Which of the row's images it is.
        prompt: Any text.
        suffix: The name's end, without the dot.
    """
    text = unicodedata.normalize("NFC", prompt[:1000]).lower()
    words = "".join(c if c.isalnum() else " " for c in text).split()
    slug = "-".join(words).encode()[:_MAX_WORD_BYTES].decode(errors="ignore").rstrip("-")
    return f"{index:05d}-{number:02d}{'-' if slug else ''}{slug}.{suffix}"


def numbers_in(name: str, suffix: str) -> tuple[int, int] | None:
    """Tell the index and number of an image from its file's name; None if it is no such name."""
    found = _NAME.fullmatch(name)
    if found is None or found[4] != suffix:
        return None
    return int(found[1]), int(found[2])


def is_left_over(name: str, suffix: str) -> bool:
    """Whether a hidden file is what is left of an image that was never written to its end."""
    # `write_whole` appends a dot and a few random characters.
    return name.startswith(".") and numbers_in(name[1:].rpartition(".")[0], suffix) is not None

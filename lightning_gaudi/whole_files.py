"""Writes a file whole or not at all: what is killed half-way leaves what was there before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as `whole_file` does.

    Args:
        path: The file.
        content: What it will hold.

    Raises:
        OSError: The file cannot be written; no part of it is left behind.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write under a hidden name in its folder, and at the end give it its own name.

    A file of that name is replaced, and its folder is made where there is none. Where the block
    ends in an exception nothing is replaced, and nothing is left behind.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's own mode keeps everybody else out
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """This process's mask of permissions, which can only be read by setting it."""
    current = os.umask(0)
    os.umask(current)
    return current

"""Writes a file whole or not at all: what is killed half-way leaves what was there before.

The content goes into a file without a name (``O_TMPFILE``) where the file system has such files:
it vanishes with the process that writes it, however that ends. Elsewhere it has a hidden name in
the same folder until it is whole.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_OPEN_FILES = "/proc/self/fd"


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
    """Open a file to write aside, in its own folder, and at the end give it its name.

    A file of that name is replaced, and its folder is made where there is none. File and folder are
    on the disk when the block is left. Where the block ends in an exception nothing is replaced,
    and nothing is left behind.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _open_aside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if temporary is None:
                temporary = _give_name(file.fileno(), path)
        os.replace(temporary, path)
    except BaseException:
        if temporary is not None:
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _open_aside(path: Path) -> tuple[int, str | None]:
    """Open a file in a path's folder; its descriptor, and its name if it has one."""
    # Not on every system, file system or kernel; /proc is what gives such a file a name later.
    if hasattr(os, "O_TMPFILE"):
        with suppress(OSError):
            handle = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
            if os.path.exists(f"{_OPEN_FILES}/{handle}"):
                return handle, None
            os.close(handle)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's own mode keeps everybody else out
    return handle, temporary


def _give_name(handle: int, path: Path) -> str:
    """Give a nameless file a hidden name; a link never replaces one, so it cannot be the last."""
    name = str(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
    open_files = os.open(_OPEN_FILES, os.O_RDONLY)
    try:
        # Relative to a folder, for without one Python makes a link to the link in /proc.
        os.link(str(handle), name, src_dir_fd=open_files, follow_symlinks=True)
    finally:
        os.close(open_files)
    return name


def _sync_folder(folder: Path) -> None:
    """Have a new name in a folder on the disk; a file system that cannot do so is let be."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """This process's mask of permissions, which can only be read by setting it."""
    current = os.umask(0)
    os.umask(current)
    return current

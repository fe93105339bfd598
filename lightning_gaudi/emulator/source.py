"""Which line of the user's code is running now.

Frames are walked from the innermost outwards. A frame is the user's unless its file lies in the
standard library, in an installed package, or in this package. Where every frame belongs to a
library (a console script, say), the innermost one outside PyTorch and this package is named.

A user's line that only started a training loop (``trainer.fit(...)``) did not ask for what the
loop does on its own: its progress bar, its optimizer step. `Place.library` tells the two apart.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parent.parent
_OURS = (_PACKAGE, _PACKAGE.with_name("lightning_gaudi_autoload"))
_STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()
_LIBRARY_FOLDERS = ("site-packages", "dist-packages")
_INTERNAL_PACKAGES = ("torch", "lightning_gaudi", "lightning_gaudi_autoload")
# Code that PyTorch (fx) and Python itself make up while the program runs.
_MADE_UP = ("<frozen", "<eval_with_key>")
# What calls users' steps. Nothing that a user's step calls passes through these (``self.log`` ends
# in the trainer's connectors, which are not among them).
_LOOPS = (
    ("lightning", "pytorch", "loops"),
    ("lightning", "pytorch", "trainer", "trainer.py"),
    ("lightning", "pytorch", "trainer", "call.py"),
    ("pytorch_lightning", "loops"),
    ("pytorch_lightning", "trainer", "trainer.py"),
    ("pytorch_lightning", "trainer", "call.py"),
    ("transformers", "trainer.py"),
)

_origins: dict[str, str] = {}
"""What each code object's file is: ``"internal"``, ``"library"``, ``"loop"`` or ``"user"``."""


class Place(NamedTuple):
    """Where something was done. Lines are ``"path:number"``.

    Attributes:
        line: The user's line; without one, the innermost library line.
        library: The innermost library line where no line of the user asked for it; else empty.
        via: Where a line of the user did, the innermost line of the library that it called; else
            empty.
    """

    line: str
    library: str
    via: str = ""


RawPlace = tuple[str, int, str, int, bool]
"""What `locate` found, before it is spelled out: the user's file and line, the innermost
library's, and whether a training loop lies between. A file that was not found is empty."""


def _classify(filename: str) -> str:
    if filename.startswith("<"):
        return "internal" if filename.startswith(_MADE_UP) else "user"
    path = Path(filename).resolve()
    if any(path.is_relative_to(folder) for folder in _OURS):
        return "internal"
    parts = path.parts
    for folder in _LIBRARY_FOLDERS:
        if folder in parts:
            after = parts[parts.index(folder) + 1 :]
            if after and after[0] in _INTERNAL_PACKAGES:
                return "internal"
            return "loop" if any(after[: len(loop)] == loop for loop in _LOOPS) else "library"
    return "internal" if path.is_relative_to(_STDLIB) else "user"


def _origin(filename: str) -> str:
    origin = _origins.get(filename)
    if origin is None:
        if len(_origins) >= 4096:
            _origins.clear()
        origin = _origins[filename] = _classify(filename)
    return origin


def locate(stops_at_loop: bool = False) -> RawPlace:
    """Find where the program is, for `spell` to put into words later.

    Args:
        stops_at_loop: Whether to be content with the library's line where a training loop was
            reached before a line of the user: less to walk.
    """
    frame: FrameType | None = sys._getframe(1)
    origins = _origins
    library_file, library_number, is_in_loop = "", 0, False
    while frame is not None:
        filename = frame.f_code.co_filename
        origin = origins.get(filename) or _origin(filename)
        if origin == "user":
            return filename, frame.f_lineno, library_file, library_number, is_in_loop
        if origin != "internal":
            if not library_file:
                library_file, library_number = filename, frame.f_lineno
            if origin == "loop":
                is_in_loop = True
                if stops_at_loop:
                    break
        frame = frame.f_back
    return "", 0, library_file, library_number, is_in_loop


def spell(raw: RawPlace) -> Place:
    """Put what `locate` found into words."""
    user_file, user_number, library_file, library_number, is_in_loop = raw
    library = f"{library_file}:{library_number}" if library_file else ""
    if user_file:
        line = f"{user_file}:{user_number}"
        return Place(line, library, "") if is_in_loop else Place(line, "", library)
    return Place(library or "<unknown>", library)


def innermost(frames: Iterable[tuple[str, int]]) -> Place | None:
    """The place of a stack that somebody else kept; None if it is all PyTorch's.

    Args:
        frames: File and line, the innermost first.
    """
    library = ""
    for filename, number in frames:
        origin = _origin(filename)
        if origin == "user":
            return Place(f"{filename}:{number}", "")
        if origin != "internal" and not library:
            library = f"{filename}:{number}"
    return Place(library, library) if library else None


def source_line() -> str:
    """The innermost user line as ``"path:number"``.

    Returns:
        The user's line; without one, the innermost library line; ``"<unknown>"`` without either.
    """
    return spell(locate()).line


def library_line() -> str:
    """The innermost line outside PyTorch and this package, as ``"path:number"``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _origin(frame.f_code.co_filename) != "internal":
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "<unknown>"

"""Which line of the user's code is running now.

Frames are walked from the innermost outwards. A frame is the user's unless its file lies in the
standard library, in an installed package, or in this package. Where every frame belongs to a
library (a console script, say), the innermost one outside PyTorch and this package is named.
"""

from __future__ import annotations

import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).resolve().parent.parent)
_STDLIB = str(Path(sysconfig.get_paths()["stdlib"]).resolve())
_LIBRARY_FOLDERS = ("site-packages", "dist-packages")


@lru_cache(maxsize=4096)
def _origin(filename: str) -> str:
    """Classify a code object's file: ``"internal"``, ``"library"`` or ``"user"``."""
    if filename.startswith("<"):
        return "internal" if filename.startswith("<frozen") else "user"
    path = Path(filename).resolve()
    text = str(path)
    if text.startswith(_PACKAGE):
        return "internal"
    parts = path.parts
    for folder in _LIBRARY_FOLDERS:
        if folder in parts:
            after = parts[parts.index(folder) + 1 :]
            return "internal" if after and after[0] in ("torch", "lightning_gaudi") else "library"
    return "internal" if text.startswith(_STDLIB) else "user"


def source_line() -> str:
    """The innermost user line as ``"path:number"``.

    Returns:
        The user's line; without one, the innermost library line; ``"<unknown>"`` without either.
    """
    frame: FrameType | None = sys._getframe(1)
    library_line = ""
    while frame is not None:
        origin = _origin(frame.f_code.co_filename)
        if origin == "user":
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if origin == "library" and not library_line:
            library_line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return library_line or "<unknown>"


def library_line() -> str:
    """The innermost line outside PyTorch and this package, as ``"path:number"``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _origin(frame.f_code.co_filename) != "internal":
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "<unknown>"

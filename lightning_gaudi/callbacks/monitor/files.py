"""Writes the monitor's files, each whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from lightning_gaudi.callbacks.monitor.figure import png_of
from lightning_gaudi.callbacks.monitor.page import page_of

NAME = "compile_monitor"


def write_report(facts: dict[str, Any], folder: Path, rank: int | None) -> Path:
    """Write the page, the picture and the data.

    Args:
        facts: From `facts_of`.
        folder: Where to; made if it does not exist.
        rank: This process's rank among several, which becomes part of the names; None for one.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = NAME if rank is None else f"{NAME}.rank{rank}"
    picture = png_of([("", facts)])
    _write(folder / f"{stem}.json", json.dumps(facts, indent=1).encode())
    _write(folder / f"{stem}.png", picture)
    page = folder / f"{stem}.html"
    _write(page, page_of(facts, picture).encode())
    return page


def _write(path: Path, content: bytes) -> None:
    """Write a file under another name and give it its own when it is whole."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

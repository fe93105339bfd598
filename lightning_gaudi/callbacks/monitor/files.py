"""Writes the monitor's files, each whole or not at all."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from lightning_gaudi.callbacks.monitor.figure import png_of
from lightning_gaudi.callbacks.monitor.page import page_of
from lightning_gaudi.whole_files import write_whole

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
    stem = NAME if rank is None else f"{NAME}.rank{rank}"
    picture = png_of([("", facts)])
    write_whole(folder / f"{stem}.json", json.dumps(facts, indent=1).encode())
    write_whole(folder / f"{stem}.png", picture)
    page = folder / f"{stem}.html"
    write_whole(page, page_of(facts, picture).encode())
    return page


def is_elsewhere(folder: Any) -> bool:
    """Whether a folder is on another machine, as ``s3://...`` is."""
    return "://" in str(folder)


def local_folder(folder: str | Path) -> Path:
    """Where reports go: the Trainer's folder, unless it is elsewhere, as ``s3://...`` is."""
    if not is_elsewhere(folder):
        return Path(folder)
    warnings.warn(
        f"CompileMonitor writes to this machine only, and {str(folder)!r} is elsewhere, so its "
        "report goes to the working folder. CompileMonitor(dirpath=...) says where to.",
        stacklevel=3,
    )
    return Path.cwd()

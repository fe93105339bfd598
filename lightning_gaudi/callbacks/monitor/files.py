"""Writes the monitor's files, each whole or not at all."""

from __future__ import annotations

import json
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

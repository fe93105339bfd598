"""Reading a checkpoint file, and saying what is wrong with one that cannot be read."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path
from typing import Any

import torch

from lightning_gaudi.errors import CheckpointError


def read(path: Path, map_location: Any, weights_only: bool) -> Any:
    """Read a checkpoint file.

    Args:
        path: The file.
        map_location: As in ``torch.load``.
        weights_only: Whether to refuse everything but tensors and plain Python values.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is a folder, it is not whole, or it holds classes that ``weights_only``
            refuses.
    """
    if not path.exists():
        raise FileNotFoundError(f"Checkpoint file not found: {path}")
    if path.is_dir():
        raise CheckpointError(_about_folder(path))
    try:
        with path.open("rb") as file:
            return torch.load(file, map_location=map_location, weights_only=weights_only)
    except Exception as error:
        refused = _refused_classes(path) if weights_only else []
        if refused:
            raise CheckpointError(_about_classes(path, refused)) from error
        if not is_whole(path):
            raise CheckpointError(_about_broken(path)) from error
        raise


def is_whole(path: Path) -> bool:
    """Whether a file is a checkpoint that was written to its end.

    A file that ``torch.save`` writes ends with the table of what is in it, so that one that was cut
    has none. The numbers themselves are not looked at.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            structure = [name for name in archive.namelist() if name.endswith("data.pkl")]
            for name in structure:
                archive.read(name)  # checks its sum
            return bool(structure)
    except (OSError, zipfile.BadZipFile):
        return False


def newest_whole(folder: Path, suffix: str, *, other_than: Path) -> Path | None:
    """The newest whole checkpoint in a folder, or None.

    Args:
        folder: Where to look.
        suffix: How its name ends.
        other_than: One that does not count.
    """
    found: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for path in folder.glob(f"*{suffix}"):
            if path.is_file() and path.resolve() != other_than.resolve():
                found.append((path.stat().st_mtime, path))
    return next((path for _, path in sorted(found, reverse=True) if is_whole(path)), None)


def _about_broken(path: Path) -> str:
    size = path.stat().st_size
    what = "empty" if size == 0 else "cut off or damaged, or no checkpoint"
    other = newest_whole(path.parent, path.suffix, other_than=path)
    if other is None:
        remedy = "There is no other checkpoint beside it: go on from an older one, or start anew."
    else:
        remedy = f"The newest whole checkpoint beside it is {other}: use that one."
    return f"the checkpoint {path} cannot be read: it is {what} ({size} bytes). {remedy}"


def _about_classes(path: Path, names: list[str]) -> str:
    return (
        f"the checkpoint {path} holds objects of {', '.join(names)}, and weights_only=True reads "
        "tensors and plain Python values only, for a file may run any code by such objects. If "
        "you trust the file, pass weights_only=False (to trainer.fit and its like from lightning "
        "2.6 on; HPUCheckpointIO(weights_only=False) does it for a whole run), or allow these "
        "classes alone with torch.serialization.add_safe_globals([...]). To keep them out of the "
        "next checkpoint, leave them out of save_hyperparameters(ignore=[...])."
    )


def _about_folder(path: Path) -> str:
    if (path / ".metadata").exists():
        return (
            f"{path} is a sharded checkpoint, a folder that a strategy with sharded parameters "
            "writes, but this strategy reads a single file. Load it with the strategy that saved "
            "it, or turn it into a file with Lightning's `python -m "
            "lightning.pytorch.utilities.consolidate_checkpoint FOLDER`."
        )
    inside = newest_whole(path, ".ckpt", other_than=path)
    hint = f" The newest checkpoint in it is {inside}." if inside else ""
    return f"{path} is a folder, but a checkpoint is a file.{hint}"


def _refused_classes(path: Path) -> list[str]:
    """Names of the classes in a file that ``weights_only`` does not allow."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        return []  # the file is not even readable so far, which is_whole then says

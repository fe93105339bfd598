"""Which ops ``torch.autocast("hpu")`` runs in which dtype: the bridge's lists, and the user's.

The bridge reads the lists once, when it loads, from the files that two variables name; a file takes
the place of the bridge's own list (1.19.0, ``autocast_helpers.h``). So lists given in Python become
files, and the variables are set before the software loads. Processes that this one starts inherit
both. The files live as long as the process that wrote them, which outlives those that it starts.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lightning_gaudi.emulator import autocast_lists
from lightning_gaudi.errors import ConfigurationError, ExecutionModeError
from lightning_gaudi.runtime import loading
from lightning_gaudi.whole_files import write_whole

LOWER_PRECISION_OPS = autocast_lists.LOWER_VARIABLE
FP32_OPS = autocast_lists.FP32_VARIABLE
DEFAULT_LOWER_PRECISION_OPS: tuple[str, ...] = tuple(sorted(autocast_lists.DEFAULT_LOWER))
"""Ops that run in autocast's dtype where no list is given (bridge 1.19.0)."""
DEFAULT_FP32_OPS: tuple[str, ...] = tuple(sorted(autocast_lists.DEFAULT_FP32))
"""Ops that run in float32 where no list is given and they are on no other (bridge 1.19.0)."""
PROMOTED_OPS: tuple[str, ...] = tuple(sorted(autocast_lists.PROMOTE))
"""Ops that run in the widest dtype of their arguments, unless they are on another list."""

_folder: Path | None = None
_written_here: set[str] = set()


def set_lists(lower: Sequence[str] | None, fp32: Sequence[str] | None) -> None:
    """Set the lists for this process and those it starts, before the software loads.

    Setting what is set already does nothing, whenever it comes.

    Args:
        lower: Ops for autocast's dtype; None leaves the list as it is.
        fp32: Ops for float32; None leaves the list as it is.

    Raises:
        ExecutionModeError: The software is loaded, so that it has read its lists, and they were
            others.
        ConfigurationError: The user has exported another list.
    """
    changed = [
        (variable, ops)
        for variable, ops in ((LOWER_PRECISION_OPS, lower), (FP32_OPS, fp32))
        if ops is not None and _current(variable) != set(ops)
    ]
    if changed and loading.is_loaded():
        exports = "\n".join(f"    export {variable}=FILE" for variable, _ in changed)
        raise ExecutionModeError(
            "autocast's op lists must be set before the Gaudi software loads, which reads them "
            "once, but it is loaded, with other lists. Make the HPUPrecision (or the strategy) "
            "before anything uses the HPU. Where the software loads inside `import torch`, as it "
            "does in eager mode, write the names to files, one on each line, and before Python "
            f"starts\n{exports}"
        )
    for variable, _ in changed:
        path = os.environ.get(variable)
        if path and path not in _written_here:
            raise ConfigurationError(
                f"autocast's op lists come from one place only, but {variable}={path!r} is "
                "exported and holds other ops than those given in Python. Unset the variable, or "
                "leave out the list in Python."
            )
    for variable, ops in changed:
        os.environ[variable] = _write(variable, ops)


def _current(variable: str) -> set[str] | None:
    """The ops in the file that a variable names; None where there is none."""
    path = os.environ.get(variable)
    if not path:
        return None
    try:
        return set(Path(path).read_text("utf-8").split())
    except OSError as error:
        raise ConfigurationError(
            f"{variable} must name a file with the name of an op on each line, but {path!r} "
            f"cannot be read: {error}. Correct the path, or unset the variable."
        ) from error


def _write(variable: str, ops: Sequence[str]) -> str:
    global _folder
    if _folder is None:
        _folder = Path(tempfile.mkdtemp(prefix="lightning_gaudi_ops_"))
        atexit.register(_remove, _folder, os.getpid())
    path = _folder / f"{variable}.{len(_written_here)}.txt"
    write_whole(path, "".join(f"{name}\n" for name in ops).encode())
    _written_here.add(str(path))
    return str(path)


def _remove(folder: Path, process: int) -> None:
    # A forked child leaves its parent's files alone.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)

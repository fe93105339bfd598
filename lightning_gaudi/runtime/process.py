"""Starting Python anew in an execution mode."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from lightning_gaudi.runtime import environment


def start_python(
    arguments: Sequence[str], *, lazy: bool, variables: Mapping[str, str] | None = None
) -> NoReturn:
    """Replace this process by Python with ``PT_HPU_LAZY_MODE`` set.

    The process keeps its id, so signals and the exit code pass by themselves.

    Args:
        arguments: What follows ``python`` on the command line.
        lazy: The mode: lazy, or eager.
        variables: Further environment variables to set.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    mode = {environment.LAZY_MODE: "1" if lazy else "0"}
    os.execve(
        sys.executable, [sys.executable, *arguments], os.environ | mode | dict(variables or {})
    )

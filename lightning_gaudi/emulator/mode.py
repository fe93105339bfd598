"""Lazy or eager: read once from ``PT_HPU_LAZY_MODE`` when the device is first used, then fixed.

The Gaudi software reads the variable at import and never again; its default is eager from
release 1.21 on (docs.habana.ai, release notes), and so it is here.
"""

from __future__ import annotations

import os

_is_lazy: bool | None = None


def is_fixed() -> bool:
    """Whether the mode has been read, so that the environment no longer matters."""
    return _is_lazy is not None


def is_lazy() -> bool:
    """Whether this process runs in lazy mode. The first call fixes the answer.

    Raises:
        ValueError: ``PT_HPU_LAZY_MODE`` is neither 0 nor 1.
    """
    global _is_lazy
    if _is_lazy is None:
        value = os.environ.get("PT_HPU_LAZY_MODE", "0")
        if value not in ("0", "1"):
            raise ValueError(
                f"PT_HPU_LAZY_MODE must be 0 (eager) or 1 (lazy), but it is {value!r}. "
                "Export one of the two before Python starts."
            )
        _is_lazy = value == "1"
    return _is_lazy

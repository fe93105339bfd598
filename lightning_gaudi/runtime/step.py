"""`mark_step`: where the lazy graph breaks."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gaudi.runtime import loading, ranges

# The SDK's own, once it is loaded in lazy mode, which it then stays in.
_mark: Callable[[], None] | None = None


def mark_step() -> None:
    """Break the lazy graph: compile it, if it is new, and start it on the device.

    Does nothing in eager mode and where the Gaudi software is not loaded, so that loops in modules
    (denoising, decoding) may call it wherever they run.
    """
    mark = _mark or _find_mark()
    if mark is None:
        return
    if ranges.is_on:
        with ranges.named(ranges.MARK_STEP):
            mark()
    else:
        mark()


def _find_mark() -> Callable[[], None] | None:
    global _mark
    if loading.is_loaded() and loading.is_lazy():
        _mark = loading.module("torch.core").mark_step
    return _mark

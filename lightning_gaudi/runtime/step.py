"""`mark_step`: where the lazy graph breaks."""

from __future__ import annotations

from lightning_gaudi.runtime import loading, ranges


def mark_step() -> None:
    """Break the lazy graph: compile it, if it is new, and start it on the device.

    Does nothing in eager mode and where the Gaudi software is not loaded, so that loops in modules
    (denoising, decoding) may call it wherever they run.
    """
    if loading.is_loaded() and loading.is_lazy():
        if ranges.is_on:
            with ranges.named(ranges.MARK_STEP):
                loading.module("torch.core").mark_step()
        else:
            loading.module("torch.core").mark_step()

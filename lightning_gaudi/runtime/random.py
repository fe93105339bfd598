"""The state of the device's random numbers."""

from __future__ import annotations

from torch import Tensor

from lightning_gaudi.runtime import loading


def get_state() -> Tensor | None:
    """The state of the device's generator, or None where no Gaudi software is loaded.

    Returns:
        A CPU tensor of bytes; the SDK's generator lives on the host (1.19.0, ``hpu/random.py``).
    """
    if not loading.is_loaded():
        return None
    state: Tensor = loading.module("torch.hpu.random").get_rng_state()
    return state


def set_state(state: Tensor | None) -> None:
    """Put back a state that `get_state` gave."""
    if state is not None:
        loading.module("torch.hpu.random").set_rng_state(state)

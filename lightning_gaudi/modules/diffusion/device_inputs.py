"""Gives a denoiser what stock pipelines leave on the host: the timestep, as a device tensor.

In a graph a host value is part of what was captured, so a timestep on the host would be another
graph in every step. A forward pre-hook runs around the captured forward, not in it, and moves it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_TIMESTEPS = ("timestep", "timesteps")


@contextmanager
def device_inputs(denoiser: nn.Module) -> Iterator[None]:
    """Move host tensors among a denoiser's arguments to its device, for as long as this lasts.

    A timestep that is a Python number becomes a tensor of one element: int64, or float32 for a
    float. Moving a tensor to the device reads nothing on the host.
    """
    names = list(inspect.signature(denoiser.forward).parameters)
    device = next(denoiser.parameters()).device

    def move(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        moved = [
            _moved(name, value, device)
            for name, value in zip([*names, *[""] * len(args)], args, strict=False)
        ]
        return tuple(moved), {n: _moved(n, value, device) for n, value in kwargs.items()}

    handle = denoiser.register_forward_pre_hook(move, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _moved(name: str, value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device)
    if isinstance(value, dict):
        return {key: _moved("", item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return type(value)([_moved("", item, device) for item in value])
    if name in _TIMESTEPS and isinstance(value, (int, float)):
        dtype = torch.float32 if isinstance(value, float) else torch.int64
        return torch.tensor([value], dtype=dtype).to(device)
    return value

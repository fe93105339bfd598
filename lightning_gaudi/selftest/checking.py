"""What checks use: figures, expectations, skipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.runtime import device, step

Figures = dict[str, Any]
"""What a check measured, by name; types that JSON has."""


class SkippedError(Exception):
    """There is nothing to check here; says why."""


def expect(is_so: bool, what: str) -> None:
    """Fail where something is not so.

    Args:
        is_so: Whether it is.
        what: What was expected and what came.

    Raises:
        AssertionError: It is not.
    """
    if not is_so:
        raise AssertionError(what)


def expect_close(
    figures: Figures, name: str, actual: Tensor, expected: Tensor, tolerance: float
) -> None:
    """Fail where two tensors differ by more than a part of the largest value; note by how much.

    A card multiplies matrices with another rounding than a CPU, so equality is not asked for.

    Args:
        figures: Where the largest difference is noted, as ``name``.
        name: What is compared.
        actual: Of any device.
        expected: On the CPU, of the same shape.
        tolerance: How much of the largest expected magnitude they may differ.

    Raises:
        AssertionError: Shapes differ, or values do by more.
    """
    on_host = actual.detach().cpu().double()
    wanted = expected.detach().cpu().double()
    expect(
        on_host.shape == wanted.shape,
        f"{name}: shape {tuple(on_host.shape)}, expected {tuple(wanted.shape)}",
    )
    difference = float((on_host - wanted).abs().max()) if wanted.numel() else 0.0
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    figures[f"{name}: largest difference"] = difference
    expect(
        difference <= tolerance * max(scale, 1e-6),
        f"{name}: differs by {difference:.3g} where the largest value is {scale:.3g}; "
        f"expected at most {tolerance:g} of it",
    )


def hpu() -> torch.device:
    """The device."""
    return device.this_device()


def settle() -> None:
    """Have the device do all it was given."""
    step.mark_step()
    device.synchronize()

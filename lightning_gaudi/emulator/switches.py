"""Switches of the SDK that change how a card compiles or runs, and nothing that this one does.

They are kept, so that what is set can be asked for again (bridge 1.19.0, ``hpu/__init__.py`` and
``backend/helpers/runtime_config.cpp``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def _is_on(name: str) -> bool:
    return os.environ.get(name, "0").lower() in ("1", "true")


class _Switches:
    """The switches; None where the environment still decides."""

    dynamic_shape: bool | None = None
    inference_mode: bool | None = None
    quantization = False
    matmul3d_2d_reshape = False
    optim_output_sif = False
    recompute_sdp = True


_switches = _Switches()


def enable_dynamic_shape() -> None:
    """Let the card refine graphs of changing shapes into ranges."""
    _switches.dynamic_shape = True


def disable_dynamic_shape() -> None:
    """Let the card compile each shape."""
    _switches.dynamic_shape = False


def get_dynamic_shape_status() -> bool:
    """Whether shapes are refined; ``PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES`` unless set here."""
    if _switches.dynamic_shape is None:
        return _is_on("PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES")
    return _switches.dynamic_shape


def enable_inference_mode() -> None:
    """Compile for inference."""
    _switches.inference_mode = True


def disable_inference_mode() -> None:
    """Compile for training as well."""
    _switches.inference_mode = False


def is_inference_mode_enabled() -> bool:
    """Whether graphs are compiled for inference; ``PT_HPU_INFERENCE_MODE`` unless set here."""
    if _switches.inference_mode is None:
        return _is_on("PT_HPU_INFERENCE_MODE")
    return _switches.inference_mode


def enable_quantization() -> None:
    """Compile quantized graphs."""
    _switches.quantization = True


def disable_quantization() -> None:
    """Compile without quantization."""
    _switches.quantization = False


def enable_matmul3d_2d_reshape() -> None:
    """Let the card reshape three-dimensional matrix products to two."""
    _switches.matmul3d_2d_reshape = True


def disable_matmul3d_2d_reshape() -> None:
    """Leave three-dimensional matrix products as they are."""
    _switches.matmul3d_2d_reshape = False


def enable_optim_output_sif() -> None:
    """Optimize how the card infers output shapes."""
    _switches.optim_output_sif = True


def disable_optim_output_sif() -> None:
    """Do not optimize how the card infers output shapes."""
    _switches.optim_output_sif = False


def enable_recompute_sdp(enabled: bool) -> None:
    """Whether `FusedSDPA` recomputes in its backward what it would otherwise keep."""
    _switches.recompute_sdp = enabled


def recompute_sdp_enabled() -> bool:
    """Whether `FusedSDPA` recomputes; true at first."""
    return _switches.recompute_sdp


@contextmanager
def sdp_kernel(enable_recompute: bool = True) -> Iterator[dict[str, bool]]:
    """Choose whether `FusedSDPA` recomputes within a ``with`` block."""
    before = _switches.recompute_sdp
    _switches.recompute_sdp = enable_recompute
    try:
        yield {}
    finally:
        _switches.recompute_sdp = before


__all__ = [
    "disable_dynamic_shape",
    "disable_inference_mode",
    "disable_matmul3d_2d_reshape",
    "disable_optim_output_sif",
    "disable_quantization",
    "enable_dynamic_shape",
    "enable_inference_mode",
    "enable_matmul3d_2d_reshape",
    "enable_optim_output_sif",
    "enable_quantization",
    "enable_recompute_sdp",
    "get_dynamic_shape_status",
    "is_inference_mode_enabled",
    "recompute_sdp_enabled",
    "sdp_kernel",
]

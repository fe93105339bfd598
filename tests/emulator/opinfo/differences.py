"""What differs between the CPU and the emulated HPU, by name; everything else must be equal."""

from __future__ import annotations

import torch
from emulator.opinfo.comparison import EXACT, Tolerance

UNINITIALIZED = frozenset(
    {
        "empty",
        "empty_like",
        "empty_permuted",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
    }
)

# Which of PyTorch's formulas runs can depend on the type or the name of the device.
_SUBCLASS = "C++ takes a formula without in-place steps for every tensor subclass"
_VECTORS = "for a subclass C++ computes the vectors as well, by another LAPACK routine"
_BY_DEVICE = "accumulates in another dtype on any device that is not the CPU"
_UNSTABLE = "the CPU's own result depends on where in memory its input lies"

OTHER_ROUNDING: dict[str, str] = {
    "linalg.cond": _VECTORS,
    "linalg.eigvalsh": _VECTORS,
    "linalg.lstsq": _UNSTABLE,
    "linalg.lstsq.grad_oriented": _UNSTABLE,
    "linalg.matrix_norm": _VECTORS,
    "linalg.norm": _VECTORS,
    "linalg.svdvals": _VECTORS,
    "masked.prod": _SUBCLASS,
    "masked_fill": _SUBCLASS,
    "norm.nuc": _VECTORS,
    "prod": _SUBCLASS,
}
"""Entries that are compared with a tolerance, and why. All others must be equal bit for bit."""

_DENSE_ONLY = "sparse tensors are refused, as by most ops on a card"
_STRIDES = "a gradient has other strides: C++ takes another formula for every tensor subclass"

DIFFERENT: dict[str, str] = {
    "nn.functional.linear_cross_entropy.chunked-bfloat16": _BY_DEVICE,
    "nn.functional.linear_cross_entropy.chunked_none-bfloat16": _BY_DEVICE,
    "ormqr-float32": _STRIDES,
    "sparse.mm.reduce-bfloat16": _DENSE_ONLY,
    "sparse.mm.reduce-float32": _DENSE_ONLY,
    "sparse.sampled_addmm-float32": _DENSE_ONLY,
    "to_sparse-bfloat16": _DENSE_ONLY,
    "to_sparse-float32": _DENSE_ONLY,
}
"""Pairs that differ, and why. One that is equal after all fails the run."""

# What PyTorch's own tests allow a dtype by default: relative, absolute.
_DEFAULT: dict[torch.dtype, Tolerance] = {
    torch.float32: (1.3e-6, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
}


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """How far the results of an entry may be apart, relative and absolute."""
    return _DEFAULT[dtype] if name in OTHER_ROUNDING else EXACT

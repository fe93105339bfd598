"""Whether two results are the same: one of the CPU, one of the emulated HPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.tensor import HPUTensor, block_of

Tolerance = tuple[float, float]
EXACT: Tolerance = (0.0, 0.0)


class Mismatch(AssertionError):
    """What differs, with the place in the result."""


def compare(
    expected: Any,
    found: Any,
    place: str,
    *,
    tolerance: Tolerance = EXACT,
    has_values: bool = True,
) -> None:
    """Compare the results of an op in structure, type, dtype, shape, strides and value.

    Args:
        expected: The CPU's; tensors are plain.
        found: The HPU's; each tensor must be on the HPU.
        place: What to call it in the error.
        tolerance: Relative and absolute, as for ``torch.testing.assert_close``.
        has_values: Whether the values mean anything; those of ``torch.empty`` do not.

    Raises:
        Mismatch: They differ.
    """
    if isinstance(expected, Tensor):
        _compare_tensors(expected, found, place, tolerance, has_values)
    elif isinstance(expected, (list, tuple)):
        if type(found) is not type(expected) or len(found) != len(expected):
            raise Mismatch(f"{place}: {type(found)} where the CPU gives {type(expected)}")
        for number, (a, b) in enumerate(zip(expected, found, strict=True)):
            compare(
                a,
                b,
                f"{place}[{number}]",
                tolerance=tolerance,
                has_values=has_values,
            )
    elif isinstance(expected, dict):
        if type(found) is not type(expected) or found.keys() != expected.keys():
            raise Mismatch(f"{place}: keys {found} where the CPU has {expected}")
        for key, value in expected.items():
            compare(
                value,
                found[key],
                f"{place}[{key!r}]",
                tolerance=tolerance,
                has_values=has_values,
            )
    elif isinstance(expected, torch.device):
        if found != torch.device("hpu", 0):
            raise Mismatch(f"{place}: device {found}")
    elif type(found) is not type(expected):
        raise Mismatch(f"{place}: {type(found)} where the CPU gives {type(expected)}")
    elif has_values and not _same_number(expected, found):
        raise Mismatch(f"{place}: {found} where the CPU gives {expected}")


def _same_number(expected: Any, found: Any) -> bool:
    return bool(expected == found) or (expected != expected and found != found)


def _compare_tensors(
    expected: Tensor,
    found: Any,
    place: str,
    tolerance: Tolerance,
    has_values: bool,
) -> None:
    if not isinstance(found, Tensor):
        raise Mismatch(f"{place}: {type(found)} where the CPU gives a tensor")
    if not found.is_hpu:
        raise Mismatch(f"{place}: a plain tensor on the host")
    _check_memory(found, place)
    for name in ("dtype", "shape", "layout", "requires_grad"):
        a, b = getattr(expected, name), getattr(found, name)
        if a != b:
            raise Mismatch(f"{place}: {name} {b} where the CPU has {a}")
    if expected.layout is torch.strided:
        if _strides(expected) != _strides(found):
            a, b = expected.stride(), found.stride()
            raise Mismatch(f"{place}: strides {b} where the CPU has {a}")
        for method in ("is_conj", "is_neg"):
            a, b = getattr(expected, method)(), getattr(found, method)()
            if a != b:
                raise Mismatch(f"{place}: {method}() {b} where the CPU has {a}")
    if has_values:
        _compare_values(expected.detach(), found.detach().cpu(), place, tolerance)


def _check_memory(found: Tensor, place: str) -> None:
    """The device memory that a tensor counts for is the memory that it has."""
    if type(found) is HPUTensor and found.layout is torch.strided:
        counted, real = block_of(found).nbytes, found.untyped_storage().nbytes()
        if counted != real:
            raise Mismatch(f"{place}: {counted} bytes of device memory are counted, not {real}")


def _strides(tensor: Tensor) -> list[int]:
    """The strides that matter: there is no second step along a dimension of size 1."""
    if tensor.numel() == 0:
        return []
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


def _compare_values(expected: Tensor, found: Tensor, place: str, tolerance: Tolerance) -> None:
    if type(found) is not Tensor:
        raise Mismatch(f"{place}: cpu() gives {type(found)}")
    if expected.is_quantized:
        expected, found = expected.dequantize(), found.dequantize()
    elif expected.layout is torch.strided and expected.dtype.itemsize == 1:
        # Eight-bit floats have no comparison on the CPU; their bytes have.
        expected, found = expected.view(torch.uint8), found.view(torch.uint8)
    elif expected.dtype is torch.complex32:
        # Nor have complex numbers of half precision.
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    if expected.layout is torch.strided and torch.equal(expected, found):
        return
    relative, absolute = tolerance
    try:
        torch.testing.assert_close(
            found, expected, rtol=relative, atol=absolute, equal_nan=True, check_stride=False
        )
    except AssertionError as error:
        text = " ".join(str(error).split())
        raise Mismatch(f"{place}: {text}") from None

"""Counts where a scheduler reads device tensors on the host. Works on a card too."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gaudi.runtime.source import library_line

_NUMBERS = (torch.IntType, torch.FloatType, torch.BoolType, torch.NumberType)
_DATA_DEPENDENT = frozenset({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output})
# Answered from what the host knows of a tensor.
_METADATA = frozenset({"aten::is_pinned", "aten::is_same_size", "aten::_version"})
# Looks at an error code on the host, though its schema returns nothing.
_SILENT = frozenset({"aten::_linalg_check_errors"})
_INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_"})


class HostReadCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that counts ops which wait for a device value.

    It costs a few microseconds an op, so it is meant for a first batch.

    Attributes:
        reads: How often each op at each line waited, as ``(op, "file:line")``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _is_read(func, args, kwargs, result):
            self.reads[func._schema.name, library_line()] += 1
        return result

    @property
    def num_reads(self) -> int:
        """How often an op waited."""
        return self.reads.total()

    def warn(self, name: str, num_steps: int) -> None:
        """Warn where a scheduler has read something.

        Args:
            name: The scheduler's class.
            num_steps: Its steps that were looked at.
        """
        if not self.reads:
            return
        places = ", ".join(
            f"{op} at {line}" + (f" ({times} times)" if times > 1 else "")
            for (op, line), times in self.reads.most_common(5)
        )
        warnings.warn(
            f"{name} reads device tensors on the host, {self.num_reads} times in the {num_steps} "
            f"steps of the first batch, and each read waits for the device: {places}. The images "
            "are right all the same. DDIM, DDPM, Euler, Euler ancestral, DPM-Solver++, UniPC and "
            "flow matching read nothing.",
            stacklevel=5,
        )


def _is_read(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
    name = func._schema.name
    if name in _METADATA or not any(map(_is_on_device, (*args, *kwargs.values()))):
        return False
    if name in _SILENT or any(isinstance(r.type, _NUMBERS) for r in func._schema.returns):
        return True
    if name == "aten::copy_":
        return not _is_on_device(args[0])
    if name in _INDEXING:
        return any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in args[1]
        )
    if not _DATA_DEPENDENT.isdisjoint(func.tags):
        return True
    return isinstance(result, Tensor) and not _is_on_device(result)


def _is_on_device(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_on_device, value))
    return isinstance(value, Tensor) and value.device.type not in ("cpu", "meta")

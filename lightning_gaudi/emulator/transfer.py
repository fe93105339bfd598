"""Moves between host and device: ``to``, ``cpu``, ``hpu``, with gradients.

C++ takes an `HPUTensor` for a CPU tensor and would return it unchanged from ``to("cpu")``; so the
Python-level methods decide, and two autograd functions carry gradients across.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.dispatch import to_host
from lightning_gaudi.emulator.tensor import HPUTensor

_plain_to = Tensor.to
_SPARSE_LAYOUTS = frozenset(
    {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
)


class _ToHost(torch.autograd.Function):
    """Copy to the CPU; the gradient goes back to the device."""

    @staticmethod
    def forward(ctx: Any, tensor: HPUTensor, options: dict[str, Any]) -> Tensor:
        ctx.dtype = tensor.dtype
        return to_host(tensor, **options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _plain_to(grad, device=torch.device("hpu"), dtype=ctx.dtype), None


class _ToDevice(torch.autograd.Function):
    """Copy to the HPU; the gradient comes back to the host."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, options: dict[str, Any]) -> Tensor:
        ctx.dtype = tensor.dtype
        return _plain_to(tensor.detach(), device=torch.device("hpu"), **options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if type(grad) is HPUTensor:
            grad = to_host(grad)
        # A tensor that only stands for one on the HPU, while a graph is traced, moves here.
        return _plain_to(grad, device=torch.device("cpu"), dtype=ctx.dtype), None


def check_index(device: torch.device) -> None:
    """Refuse a device that does not exist: a process has one HPU, and its index is 0.

    Raises:
        RuntimeError: The index is not 0.
    """
    if device.index not in (None, 0):
        raise RuntimeError(
            f"device {device} does not exist: a process has one HPU, hpu:0. Which card that is, "
            "HLS_MODULE_ID decides; more cards need more processes."
        )


def parse(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, dict[str, Any]]:
    """Split the arguments of ``Tensor.to`` into the device and the rest as keywords."""
    options = dict(kwargs)
    rest = list(args)
    device: Any = options.pop("device", None)
    if (rest and isinstance(rest[0], Tensor)) or "other" in options:
        other = options.pop("other") if "other" in options else rest.pop(0)
        device, options["dtype"] = other.device, other.dtype
    elif rest and isinstance(rest[0], torch.dtype):
        options["dtype"] = rest.pop(0)
    elif rest:
        device = rest.pop(0)
        if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
            options["dtype"] = rest.pop(0)
    for name in ("non_blocking", "copy"):
        if rest:
            options[name] = rest.pop(0)
    if options.get("dtype") is None:
        options.pop("dtype", None)
    return None if device is None else torch.device(device), options


def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``Tensor.to`` where either side may be the emulated HPU; see PyTorch's own for arguments."""
    if type(self) is not HPUTensor:
        if not _names_hpu(args, kwargs):
            return _plain_to(self, *args, **kwargs)
        device, options = parse(args, kwargs)
        assert device is not None
        check_index(device)
        if self.layout in _SPARSE_LAYOUTS:
            raise NotImplementedError(
                f"the emulated HPU holds dense tensors only, but this one is {self.layout}. Call "
                "to_dense() first."
            )
        options.pop("copy", None)  # between devices a move is always a copy
        if self.requires_grad and torch.is_grad_enabled():
            return _ToDevice.apply(self, options)  # type: ignore[no-any-return, no-untyped-call]
        return _plain_to(self, device=torch.device("hpu"), **options)
    device, options = parse(args, kwargs)
    if device is None or device.type == "hpu":
        if device is not None:
            check_index(device)
        options.setdefault("dtype", self.dtype)
        return _plain_to(self, **options)
    if device.type != "cpu":
        return _plain_to(to_host(self), device=device, **options)
    options.pop("copy", None)
    if self.requires_grad and torch.is_grad_enabled():
        return _ToHost.apply(self, options)  # type: ignore[no-any-return, no-untyped-call]
    return to_host(self, **options)


def _names_hpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    target = kwargs.get("device", kwargs.get("other")) if kwargs else None
    if target is None and args:
        target = args[0]
    if type(target) is str:
        return target.startswith("hpu")
    if isinstance(target, torch.device):
        return target.type == "hpu"
    return type(target) is HPUTensor


def type_as(self: Tensor, other: Tensor) -> Tensor:
    """``Tensor.type_as``: the dtype and the device of another tensor."""
    return to(self, other)


_plain_parse_to = torch._C._nn._parse_to


def _parse_module_to(*args: Any, **kwargs: Any) -> Any:
    """What ``Module.to`` makes of its arguments: one may be a tensor, whose device it takes."""
    device, *rest = _plain_parse_to(*args, **kwargs)
    example = kwargs.get("tensor", args[0] if args else None)
    return (example.device if type(example) is HPUTensor else device, *rest)


def cpu(self: HPUTensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """A copy of the tensor in host memory."""
    return to(self, torch.device("cpu"), memory_format=memory_format)


def attach() -> None:
    """Put the moves where user code finds them. ``Tensor.to`` serves plain tensors too."""
    Tensor.to = to  # type: ignore[method-assign, assignment]
    Tensor.type_as = type_as  # type: ignore[method-assign, assignment]
    torch._C._nn._parse_to = _parse_module_to
    HPUTensor.cpu = cpu  # type: ignore[method-assign, assignment]

"""Refuse an op whose tensors lie on two devices, as PyTorch does.

C++ takes an `HPUTensor` for a CPU tensor, so nothing below Python would refuse. A plain tensor of
one dimension or more among the arguments of an op is an error, with three exceptions:

- Arguments that belong on the host, such as index tensors.
- Helpers. A few of PyTorch's composites make themselves a tensor "on the same device", which
  arrives here without our type: an operand, which is listed by the op that it reaches, or what an
  op is to write to beside the user's ``out=``. To tell it from a tensor of the user's: nothing in
  Python refers to a helper but the call itself.
- The backward pass, whose formulas make many helpers, and which began with a checked forward.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lightning_gaudi.emulator.ops import OpInfo
from lightning_gaudi.emulator.tensor import HPUTensor

_no_dispatch = torch._C._DisableTorchDispatch

# Where helpers arrive; found by running PyTorch's whole table of op samples on the device.
_HELPER_POSITIONS = {
    "add.Tensor": {1},  # scaled_dot_product_attention(is_causal=True): its mask
    "cat": {0},  # the derivative of prod in forward mode: its ones
    "div.Tensor": {1},  # istft: its window, squared
    "eq.Tensor": {1},  # one_hot: its classes
    "masked_fill.Scalar": {0},  # quantile: its ranks
    "masked_select": {1},  # combinations: its mask
    "maximum": {0},  # linalg.matrix_rank: its tolerance
    "mkldnn_rnn_layer": {3, 4},  # an LSTM without biases: its zeros
    "mul.Tensor": {0, 1},  # linalg.matrix_rank: its tolerance; istft: its window
}


def check(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check the arguments of an op that is about to run.

    Raises:
        RuntimeError: One of them lies on the host.
    """
    if torch._C._current_graph_task_id() != -1:
        return
    for position in range(len(args)):
        if position in info.host_positions or not _has_host_tensor(args[position]):
            continue
        if position in _HELPER_POSITIONS.get(info.name, ()) and _are_helpers(args, position):
            continue
        _refuse()
    for name in kwargs:
        if not _has_host_tensor(kwargs[name]):
            continue
        if name in info.writes and _is_helper(kwargs, name):
            continue
        _refuse()


def _refuse() -> None:
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        'hpu:0 and cpu! Move the CPU tensor first: tensor.to("hpu").'
    )


def _has_host_tensor(value: Any) -> bool:
    kind = type(value)
    if kind is HPUTensor:
        return False
    if kind is list or kind is tuple:
        return any(_has_host_tensor(item) for item in value)
    if not isinstance(value, Tensor):
        return False
    if getattr(value, "is_hpu", False):  # but no HPUTensor: PyTorch asks the other way round
        raise RuntimeError(
            "got mixed torch.Tensor and DTensor, need to convert all torch.Tensor to DTensor "
            "before calling distributed operators!"
        )
    # A zero-dimensional CPU tensor is an operand like any other on every device.
    return value.dim() > 0


def _are_helpers(args: tuple[Any, ...], position: int) -> bool:
    """`_is_helper` for an argument that may be a list of tensors."""
    kind = type(args[position])
    if kind is not list and kind is not tuple:
        return _is_helper(args, position)
    # A dispatch mode's own references are not told from the user's here.
    limit = _helper_references()
    return all(
        not _has_host_tensor(args[position][number])
        or sys.getrefcount(args[position][number]) <= limit
        for number in range(len(args[position]))
    )


def _is_helper(args: Any, position: Any) -> bool:
    """Whether nobody but the call refers to an argument: ``args[position]``, of a tuple or a dict.

    The count is of the reference that the container holds; no local name may add one here.
    """
    references = sys.getrefcount(args[position])
    if references <= _helper_references():
        return True
    # A dispatch mode in between has passed the helper on, and its frames hold it too.
    return references - _references_of_modes(args, position) <= _helper_references()


def _references_of_modes(args: Any, position: Any) -> int:
    """References to an argument from the frames of the dispatch modes that passed it on."""
    held: dict[int, int] = {}
    num_direct = 0
    for frame in _mode_frames():
        # An overload called from Python hands its arguments to C++ in a tuple that no frame shows.
        num_direct += frame.f_code is OpOverload.__call__.__code__
        for value in frame.f_locals.values():
            num_direct += value is args[position]
            for container in _containers(value):
                if container is not args:
                    held[id(container)] = sum(item is args[position] for item in container)
    return num_direct + sum(held.values())


def _mode_frames() -> list[FrameType]:
    """The frames from the op's caller out to the outermost dispatch mode's."""
    frames: list[FrameType] = []
    num_of_modes = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_FOLDER):
        frame = frame.f_back
    while frame is not None:
        frames.append(frame)
        if frame.f_code.co_name == "__torch_dispatch__":
            num_of_modes = len(frames)
        frame = frame.f_back
    return frames[:num_of_modes]


_FOLDER = __file__.rpartition("/")[0] or __file__.rpartition("\\")[0]


def _containers(value: Any) -> Iterator[Any]:
    if type(value) is dict:
        value = list(value.values())
    if type(value) in (tuple, list):
        yield value


class _Probe(Tensor):
    """Runs a composite that makes a helper, and counts the references when the helper arrives."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    seen: list[int] = []  # noqa: RUF012 - shared on purpose

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.masked_fill.Scalar:
            cls.seen.append(sys.getrefcount(args[0]))
        with _no_dispatch():
            out = func(*args, **(kwargs or {}))
        if type(out) is Tensor:
            return Tensor._make_subclass(cls, out, False)
        if type(out) is tuple:
            return tuple(Tensor._make_subclass(cls, item, False) for item in out)
        return out


@lru_cache(maxsize=1)
def _helper_references() -> int:
    """References to a helper that nobody else holds; the number depends on the Python."""
    _Probe.seen.clear()
    with torch.inference_mode(False), torch.no_grad():
        torch.quantile(Tensor._make_subclass(_Probe, torch.arange(3.0), False), 0.5)
    return max(_Probe.seen)
